"""DistilBERT's experiment from text to tables: one script a table, each of which runs potstill's own verbs.

`python -m reproduce` runs all of them in order, `python -m reproduce.NAME` one. What is finished is skipped and what
was interrupted goes on, so the same command is given again until it ends. Weights and runs go to `--work_dir`, figures
as small JSON files to `--results_dir`; `python -m reproduce.render` writes the tables of docs/results.md from them.
"""
