"""Tables, plots, model cards and pages for people to read."""
