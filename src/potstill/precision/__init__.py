"""Fewer bits for a number: the integers of an int8 export, and fixed-point numbers in training."""

BITS = {"int8": 8, "int4": 4}
"""What a fine-tuning can train for → bits of a weight on disk."""
