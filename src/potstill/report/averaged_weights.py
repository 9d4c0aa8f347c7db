"""The section of a model card on weights that are the mean of those of several steps."""

from __future__ import annotations

from typing import Any

from potstill.report.markdown import figure


def averaged_section(results: dict[str, Any]) -> str:
    """Return the section; "" if the weights are those of one step.

    Args:
        results: measured figures, as `run_results` returns them.
    """
    record = results.get("averaged_weights")
    if record is None or record["steps"] == 0:
        return ""
    first, last = record["first_step"], record["first_step"] + record["steps"] - 1
    text = f"The weights are the mean of those after the steps {first:,} to {last:,}."
    final, of_last_step = results["held_out"]["final"], record["held_out_of_last_step"]
    if final is not None and of_last_step is not None:
        text += (
            f" Their held-out loss is {figure(final['loss'], '.4f')}. The weights after the last step alone have "
            f"{figure(of_last_step['loss'], '.4f')}."
        )
    return f"## Averaged weights\n\n{text}"
