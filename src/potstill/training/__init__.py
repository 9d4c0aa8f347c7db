"""The training loop: a `transformers.Trainer` subclass, its checkpoints and budget, and the verbs that run it."""
