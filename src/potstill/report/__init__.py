"""Tables, plots, model cards and pages: what people look at."""
