"""Fine-tuning on a task, by its labels alone or by a task teacher's soft targets too."""
