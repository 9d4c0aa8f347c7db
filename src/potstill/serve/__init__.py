"""The page that runs exported models in a browser, and the server that brings it there."""
