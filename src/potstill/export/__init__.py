"""Converts a model for another runtime, and checks that it gives the same answers there."""
