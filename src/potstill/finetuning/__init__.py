"""Fine-tunes a model on a task with its labels, or with its labels and the soft targets of a task teacher."""
