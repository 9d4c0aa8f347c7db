"""Tasks that a model is judged by: data, labels and metrics, one file a family."""
