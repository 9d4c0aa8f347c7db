"""Runs models × tasks × seeds, and compares a student's results with its teacher's."""
