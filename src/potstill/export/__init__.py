"""Taking a model to where it is used, and making sure that it says the same there."""
