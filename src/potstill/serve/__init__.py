"""The page that runs exported models in a browser, and its web server."""
