"""Models of potstill's own that only do a task. They have no layers of a transformer to copy, prune or compare."""

from __future__ import annotations

TASK_MODELS = {"potstill-bilstm": "a BiLSTM", "potstill-frozen-encoder": "a BiLSTM on a frozen encoder"}
"""Type of a model → what it is."""


def only_for_tasks(model_type: object) -> str | None:
    """Return why a model can only be fine-tuned, or teach a fine-tuning, ready to follow "it …"; else None."""
    what = TASK_MODELS.get(str(model_type))
    if what is None:
        return None
    return (
        f"is {what}, which has no layers of a transformer; it can be the --model or the --teacher of potstill finetune"
    )
