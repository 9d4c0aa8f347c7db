"""One script for each of the papers that DistilBERT stands on; `docs/results/papers.md` explains what each measures."""
