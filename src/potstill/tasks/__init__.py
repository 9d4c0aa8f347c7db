"""Tasks that measure a model: data, labels and metrics, with one file per family of tasks."""
