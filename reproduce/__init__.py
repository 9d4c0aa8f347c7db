"""DistilBERT's experiment, from text to tables. There is one script for each table, and it runs potstill's own verbs.

`python -m reproduce` runs all scripts in order; `python -m reproduce.NAME` runs one. To continue after an interruption,
repeat the same command: it skips finished runs and resumes interrupted ones. Weights and runs go to `--work_dir`,
results as small JSON files to `--results_dir`. `python -m reproduce.render` writes the tables of docs/results/paper.md
from these files.
"""
