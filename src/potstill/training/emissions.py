"""The emissions of a training, if codecarbon measured them: `--report_to codecarbon`."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from transformers.integrations import CodeCarbonCallback

from potstill.training.resumable import ResumableTrainer


def measured_emissions(trainer: ResumableTrainer) -> dict[str, Any] | None:
    """Return the grams of CO₂ equivalents of a training, and what measured them; None if nothing did.

    A training that was interrupted has several parts. Only the last part is measured, so there is no figure.
    """
    callback = next((one for one in trainer.callback_handler.callbacks if isinstance(one, CodeCarbonCallback)), None)
    kilograms = getattr(getattr(callback, "tracker", None), "final_emissions", None)
    if kilograms is None or trainer.resumed:
        return None
    return {"grams": 1000 * float(kilograms), "source": f"codecarbon {version('codecarbon')}"}
