"""The Large Movie Review Dataset (Maas et al. 2011): decide whether a review is positive."""

from potstill.tasks.sentence import SentenceTask, Table
from potstill.tasks.task import Defaults

LABELS = {0: 0, 1: 1, "0": 0, "1": 1, "neg": 0, "pos": 1}

IMDB = SentenceTask(
    name="imdb",
    title="IMDb",
    labels=("neg", "pos"),
    metrics=("accuracy",),
    official=Table("text", None, "label", LABELS),
    hub=Table("text", None, "label", LABELS),
    hub_name="stanfordnlp/imdb",
    dev=("test",),  # the paper scores the test set; there is no development set
    defaults=Defaults(max_length=512),
)
