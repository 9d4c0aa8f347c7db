"""The options of `prune`: what to remove, and the model, task and data, which have the options of `finetune`."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Literal

from potstill.arguments import option
from potstill.errors import PotstillError
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.processes import launched

OPTIONS_READ = ("potstill.finetuning.finetune_arguments",)
"""See `potstill.finetuning.finetune_arguments`."""

OF_FINETUNE = frozenset(
    {
        *("model", "task", "task_data", "train_data", "eval_data", "rerank_columns", "metric"),
        *("text_column", "pair_column", "label_column", "columns", "label_names", "label_separator"),
        *("max_length", "max_train_samples", "max_eval_samples", "dev_share", "on_bad_rows", "on_bad_answer"),
        *("stride", "max_answer_length", "n_best", "null_threshold", "seed"),
        *("per_device_train_batch_size", "per_device_eval_batch_size"),
        *("output_dir", "overwrite_output_dir", "break_lock", "use_cpu"),
        *("push_to_hub", "hub_model_id", "hub_token", "hub_private_repo", "hub_revision"),
    }
)
"""The options of `finetune` that `prune` has too."""

NOT_READ = frozenset(field.name for field in fields(FinetuneArguments) if field.init) - OF_FINETUNE


@dataclass
class PruneArguments(FinetuneArguments):
    """Options of `potstill prune`.

    Raises:
        PotstillError: a value is not valid; the message names its field.
    """

    heads: float | None = option(
        None, "Attention heads to remove: below 1 a share of all heads of the model, from 1 on a number."
    )
    neurons: float | None = option(
        None, "Feed-forward neurons to remove: below 1 a share of all neurons of the model, from 1 on a number."
    )
    steps: int = option(5, "Steps in which they are removed. Importance is estimated anew before each step.")
    uniform: Literal["none", "neurons", "both"] = option(
        "neurons",
        "What every layer loses equally many of: none, neurons or both. A model with equal layers may load without "
        "potstill.",
    )
    normalise: bool = option(True, "Divide the importance of the heads of a layer by its length over the layer.")
    max_loss: float | None = option(
        None, "Stop before the first step after which the score is more points lower than this."
    )
    timed_rows: int = option(
        32, "Dev rows on which the latency is measured after each step, one at a time; 0 for none."
    )

    model: str | None = option(None, "Folder or hub name of a model that is fine-tuned on the task.", required=True)
    task: str | None = option(None, "Task that it is fine-tuned on: as for `finetune`, or a .yaml file.", required=True)
    max_train_samples: int | None = option(4000, "Training rows on which importance is estimated, a random sample.")
    seed: int = option(42, "Seed that the results carry, for tables; nothing here is random.")
    per_device_train_batch_size: int | None = option(None, "Rows at a time for the importance; the task's default.")

    not_offered: ClassVar[frozenset[str]] = FinetuneArguments.not_offered | NOT_READ

    def __post_init__(self) -> None:
        for field in fields(FinetuneArguments):
            default: Any = field.default if field.default_factory is MISSING else field.default_factory()
            if field.name in NOT_READ and getattr(self, field.name) != default:
                raise PotstillError(f"--{field.name} is no option of `prune`, which trains nothing: leave it out.")
        if launched():
            raise PotstillError("`prune` runs in one process: start it without a launcher.")
        self.bf16 = False  # the mean of absolute gradients is computed in float32, and so are the scores
        super().__post_init__()
        for name in ("heads", "neurons"):
            value = getattr(self, name)
            self._check(name, value is None or 0 < value < math.inf, "must be above 0")
        self._check("steps", self.steps > 0, "must be above 0")
        self._check("timed_rows", self.timed_rows >= 0, "must be 0 or more")
        self._check("max_loss", self.max_loss is None or 0 <= self.max_loss < math.inf, "must be 0 or more")
        choices = ("none", "neurons", "both")
        self._check("uniform", self.uniform in choices, f"must be one of {', '.join(choices)}")

    @property
    def uniform_heads(self) -> bool:
        """Whether every layer loses equally many heads."""
        return self.uniform == "both"

    @property
    def uniform_neurons(self) -> bool:
        """Whether every layer loses equally many neurons."""
        return self.uniform in ("neurons", "both")
