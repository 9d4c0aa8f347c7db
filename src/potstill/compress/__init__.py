"""A model in, a smaller one out: heads and neurons that matter little are removed."""
