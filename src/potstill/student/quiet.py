"""Silence while transformers loads or saves a model."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from transformers.utils import logging


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers' load report, warnings and bar off the terminal; bars of hub downloads stay as they were."""
    verbosity, loading_bar, hub_bars = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        not are_progress_bars_disabled(),
    )
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if loading_bar:
            logging.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()
