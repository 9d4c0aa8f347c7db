"""Measures the speed of training and of inference on this machine."""
