"""The options of a recipe for `distill` and `pretrain`: `TrainingArguments` and a few more.

The defaults are DistilBERT's (Sanh et al. 2019 and its published training script), so a recipe file names only the
options that differ. Every option is a field here, a flag of the command line and a key of a YAML file. The three have
one name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from transformers.training_args import OptimizerNames

from potstill.arguments import RunArguments, option, parsed_losses, parsed_mapping
from potstill.errors import PotstillError
from potstill.precision import BITS

MUON = "muon"
"""Value of `--optim`: Muon for the matrices of the layers, and AdamW for all other weights."""


@dataclass
class Recipe(RunArguments):
    """Options common to distillation and to pre-training without a teacher.

    Raises:
        PotstillError: an option has an impossible value; the message names the option.
    """

    corpus: str | None = option(None, "Folder written by `potstill prepare`.", required=True)
    shape: str | None = option(
        None,
        "All sizes of the model at once: tiny, mini, small, medium or base, or layers and width such as 6x256. Heads "
        "are 64 wide, and feed-forward layers 4 × the width (Turc et al. 2019).",
    )
    masking: Literal["frequency", "uniform"] = option(
        "frequency",
        "How masked tokens are sampled: with probability ∝ count^-mlm_smoothing (DistilBERT), or uniformly (BERT).",
    )
    mlm_probability: float = option(0.15, "Share of a block's tokens that are masked.")
    mlm_smoothing: float = option(0.7, "Exponent of the frequency rule.")
    short_block_size: int | None = option(
        None, "Split the blocks of most steps into pieces of this many tokens, as BERT does (128 of 512 tokens)."
    )
    short_share: float = option(0.9, "With --short_block_size: share of the steps whose blocks are split.")
    short_first: float = option(
        0.0,
        "With --short_block_size: share of the training, at its start, in which all blocks are split. The whole blocks "
        "are spread over the rest. 0 spreads them over the whole training.",
    )
    average_weights: float | None = option(
        None,
        "Save the mean of the weights over this last share of the training, such as 0.2, in place of those of the last "
        "step. Give --lr_scheduler_type constant_with_warmup too: the mean replaces a decay of the learning rate.",
    )
    max_eval_samples: int = option(256, "Held-out blocks to evaluate on; all of them if there are fewer.")
    max_train_minutes: float | None = option(
        None, "Stop after so many minutes of training; the learning rate has decayed by then."
    )

    optim: str = option(
        "adamw_torch_fused",
        "Optimiser, by its name in transformers, or muon: Muon for the matrices of the layers, and AdamW for all other "
        "weights, with one learning rate.",
    )
    learning_rate: float = option(5e-4, "Peak learning rate.")
    adam_beta2: float = option(0.98, "Beta2 of AdamW.")
    adam_epsilon: float = option(1e-6, "Epsilon of AdamW.")
    max_grad_norm: float = option(5.0, "Gradient norm above which gradients are scaled down.")
    warmup_steps: float = option(0.05, "Linear warm-up: a share of the training if below 1, else a number of steps.")
    per_device_train_batch_size: int = option(32, "Blocks per device in a micro-batch.")
    per_device_eval_batch_size: int = option(32, "Held-out blocks per device in a batch.")
    eval_strategy: str = option("steps", "When to evaluate on the held-out split: no, steps or epoch.")
    eval_steps: float | None = option(500, "Steps between two evaluations.")
    eval_on_start: bool = option(True, "Evaluate the initialised student before the first step.")
    dataloader_drop_last: bool = option(True, "Drop an incomplete batch, so that all have one shape.")

    smallest_batch = "the batch is one block already, so prepare the corpus with a smaller --block_size"

    def __post_init__(self) -> None:
        self._set_shape()
        self._check("mlm_probability", 0 < self.mlm_probability < 1, "must lie between 0 and 1")
        self._check("mlm_smoothing", 0 <= self.mlm_smoothing < math.inf, "must be 0 or more")
        self._check("masking", self.masking in ("frequency", "uniform"), "must be 'frequency' or 'uniform'")
        alone = self.masking == "uniform" and self.mlm_smoothing != type(self).mlm_smoothing
        self._check("mlm_smoothing", not alone, "has no effect with --masking uniform: leave one of them out")
        self._check("short_block_size", self.short_block_size is None or self.short_block_size > 2, "must be above 2")
        self._check("short_share", 0 < self.short_share <= 1, "must be above 0 and at most 1")
        alone = self.short_block_size is None and self.short_share != type(self).short_share
        self._check(
            "short_share", not alone, "is the share of steps whose blocks are split: give --short_block_size too"
        )
        within = 0 <= self.short_first <= self.short_share
        self._check("short_first", within, f"must be 0 or more and at most --short_share {self.short_share:g}")
        alone = self.short_block_size is None and self.short_first != type(self).short_first
        self._check("short_first", not alone, "orders the blocks that are split: give --short_block_size too")
        share = self.average_weights
        self._check("average_weights", share is None or 0 < share <= 1, "must be above 0 and at most 1")
        for name in ("load_best_model_at_end", "fixed_point"):
            together = share is not None and bool(getattr(self, name))
            self._check(name, not together, "does not go with --average_weights: leave one of them out")
        self._check("max_eval_samples", self.max_eval_samples > 0, "must be above 0")
        if self.max_train_minutes is not None:
            self._check("max_train_minutes", 0 < self.max_train_minutes < math.inf, "must be above 0")
            rule = "must be a share below 1 with --max_train_minutes, because the number of steps is not known"
            self._check("warmup_steps", 0 <= self.warmup_steps < 1, rule)
        optimiser = self.optim
        known = optimiser == MUON or optimiser in list(OptimizerNames)
        self._check("optim", known, "must be muon or the name of an optimiser in transformers, such as adamw_torch")
        if optimiser == MUON:  # `TrainingArguments` does not know it
            self.optim = type(self).optim
        super().__post_init__()
        if optimiser == MUON:
            self._check("fsdp", not self.fsdp, "does not go with --optim muon: leave one of them out")
            self.optim = MUON

    def _set_shape(self) -> None:
        """Set the sizes of `shape`.

        Raises:
            PotstillError: there is no such shape, or a size is given that contradicts it.
        """
        if self.shape is None:
            return
        from potstill.student.shapes import sizes_of_shape  # here, because reading a recipe needs no models

        for name, size in sizes_of_shape(self.shape).items():
            given = getattr(self, name)
            if given not in (None, size):
                raise PotstillError(
                    f"--shape {self.shape} has {name} {size}, but --{name} is {given}: leave one of the two out."
                )
            setattr(self, name, size)

    def replaced(self) -> set[str]:
        """See `RunArguments.replaced`. A recipe has the sizes, and not the name that they have together."""
        return super().replaced() | {"shape"}

    @property
    def blocks_per_step(self) -> int:
        """Number of blocks in one step of the optimiser, over all processes and micro-batches."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def minutes(self) -> float | None:
        """The limit of wall-clock minutes; None if only the number of steps ends the run."""
        return self.max_train_minutes


@dataclass
class DistillationArguments(Recipe):
    """Options of `potstill distill`: the teachers, the student made from the first one, and the losses."""

    teacher: list[str] | str | None = option(
        None,
        "Folder or hub name of the teacher, a language model or an encoder. With several names the student "
        "learns from their mean, and is built from the first one.",
        required=True,
        several=True,
    )
    teacher_weights: list[float] | None = option(
        None, "With several teachers: the weight of each, in the same order; equal weights if not given."
    )
    teacher_mean: Literal["probabilities", "logits"] = option(
        "probabilities", "With several teachers: whether soft targets are the mean of probabilities or of logits."
    )
    num_hidden_layers: int | None = option(None, "Layers of the student; by default half of them.")
    hidden_size: int | None = option(None, "Width of the student; the teacher's if not given.")
    num_attention_heads: int | None = option(
        None, "Attention heads of the student. If not given, they are as wide as the teacher's."
    )
    intermediate_size: int | None = option(
        None, "Width of the student's feed-forward layers. If not given, in proportion to the hidden states."
    )
    narrow_by: Literal["importance", "random"] = option(
        "importance",
        "What a narrower student keeps of the teacher's dimensions, heads and neurons: the most important, measured on "
        "a few blocks of the corpus, or random ones.",
    )
    max_size: str | None = option(
        None,
        "Choose depth and width to keep to this: 50MB or 50MiB on disk, 20M parameters, or 2.5x faster than the "
        "teacher by FLOPs. Sizes that are given stay.",
    )
    layers: str | None = option(
        None,
        "Teacher layers that the student starts from: auto (measured on held-out blocks), alternate, first, last, "
        "even, or a list such as 0,3,6. Default: auto if it can be measured, else alternate.",
    )
    layers_seconds: float = option(30.0, "Time limit of --layers auto, in seconds.")
    initialise: Literal["teacher", "random"] = option(
        "teacher", "Start from the teacher's weights or from random ones."
    )
    quantization: Literal["int8", "int4"] | None = option(
        None,
        "Train the student for its int8 export: it computes as `export --format onnx-int8` does, or for int4 with "
        "--weight_bits 4, and is saved in float.",
    )
    teacher_embeddings: Literal["computed", "kept"] = option(
        "computed",
        "For a sentence encoder: compute the teacher's embeddings in each step, or once for all texts of the corpus "
        "and keep them on disk for this run and later ones. See docs/how-to/sentence-encoders.md.",
    )
    embedding_size: int | None = option(
        None,
        "For a sentence encoder: width of the student's embeddings. If its hidden states have another width, it gets a "
        "Dense module.",
    )
    dropout: float | None = option(
        None,
        "Dropout of the student's hidden states and attention while it is distilled; the teacher's if not given. The "
        "saved config keeps the teacher's, for fine-tuning.",
    )
    fp8: dict | str | None = option(
        None,
        "Compute the linear layers of the teacher, the student or both with 8-bit operands. In detail: "
        "'{models: both, ends: 1, gradients: e5m2}'. See docs/how-to/faster-steps.md.",
    )
    trim_vocabulary: bool = option(
        False,
        "Cut the rows of the teacher's vocabulary that are beyond the tokens of its tokenizer. They are left out of "
        "the losses in any case.",
    )
    fold_token_types: bool = option(
        True,
        "Add the teacher's segment-0 vector to the student's position embeddings, so that both embed text equally.",
    )
    headless: bool = option(
        False,
        "Distil the encoder alone, without a language-model head, for fine-tuning. A teacher without a head is always "
        "distilled so.",
    )
    losses: dict | str | None = option(
        None,
        "Losses that replace the three below: each name with its weight or a mapping of options. Give them in a recipe "
        "file, or as '{soft_targets: {weight: 5, tokens: masked}, hidden_mse: {weight: 1, layers: {0: 0, 5: 11}}}'. "
        "See docs/how-to/choose-losses.md.",
    )
    alpha_ce: float = option(5.0, "Weight of the soft targets (KL to the teacher); 0 leaves them out.")
    alpha_mlm: float = option(
        2.0, "Weight of masked LM, or of causal LM for a causal model such as a GPT-2; 0 leaves it out."
    )
    alpha_cos: float = option(1.0, "Weight of the hidden-state cosine; 0 for none.")
    temperature: float = option(2.0, "Temperature of the soft targets.")
    soft_targets: Literal["all", "masked", "sampled"] = option("all", "Tokens whose soft targets are used.")
    soft_targets_share: float = option(
        0.2,
        "With --soft_targets sampled or --hidden_cosine sampled: share of the tokens that are not masked to sample.",
    )
    hidden_cosine: Literal["all", "masked", "sampled"] = option(
        "all", "Tokens whose hidden states the cosine compares."
    )

    def __post_init__(self) -> None:
        self.losses = parsed_losses(self.losses)
        kinds = ("computed", "kept")
        self._check("teacher_embeddings", self.teacher_embeddings in kinds, "must be 'computed' or 'kept'")
        self._check("quantization", self.quantization in (None, *BITS), f"must be {' or '.join(BITS)}")
        for name in ("bf16", "fp16", "fp8", "fixed_point"):
            together = self.quantization is not None and bool(getattr(self, name))
            self._check(name, not together, "does not go with --quantization: leave one of them out")
        self._check("layers_seconds", 0 < self.layers_seconds < math.inf, "must be above 0")
        unused = self.layers_seconds != type(self).layers_seconds and self.layers not in (None, "auto")
        self._check("layers_seconds", not unused, "limits the time of --layers auto: leave one of them out")
        if isinstance(self.teacher, list) and len(self.teacher) == 1:
            self.teacher = self.teacher[0]
        self._check_teachers(self.teachers)
        for name in ("hidden_size", "num_attention_heads", "intermediate_size", "embedding_size"):
            value = getattr(self, name)
            self._check(name, value is None or value > 0, "must be above 0")
        if self.max_size is not None:
            from potstill.student.sizing import Budget  # here, because reading a recipe needs no models

            Budget.parse(self.max_size)
        sizes = (self.shape, self.max_size, self.hidden_size, self.num_attention_heads, self.intermediate_size)
        unused = self.narrow_by != type(self).narrow_by and not any(sizes)
        self._check("narrow_by", not unused, "has no effect, because nothing is narrower: give --hidden_size too")
        unused = self.teacher_mean != type(self).teacher_mean and len(self.teachers) == 1
        self._check("teacher_mean", not unused, "has no effect with one teacher: leave it out")
        self._check("dropout", self.dropout is None or 0 <= self.dropout < 1, "must be 0 or more and below 1")
        if self.fp8 is not None:
            from potstill.student.fp8 import Fp8  # here, because reading a recipe needs no models

            self.fp8 = parsed_mapping("fp8", self.fp8)
            Fp8.of(self.fp8)
        for name in self._replaced_by_losses():
            if getattr(self, name) != getattr(type(self), name):
                raise PotstillError(
                    f"--losses and --{name} are both given: give all losses with their options in --losses, or leave "
                    "it out."
                )
        if self.losses is None:
            unused = self.hidden_cosine != type(self).hidden_cosine and self.alpha_cos == 0
            self._check("hidden_cosine", not unused, "has no effect with --alpha_cos 0: leave one of them out")
            in_vain = self.hidden_cosine == "sampled" and self.soft_targets == "all" and self.alpha_ce > 0
            self._check("hidden_cosine", not in_vain, "saves no time with --soft_targets all: give sampled there too")
            alone = not self._samples() and self.soft_targets_share != type(self).soft_targets_share
            self._check(
                "soft_targets_share",
                not alone,
                "belongs to --soft_targets sampled and --hidden_cosine sampled: give one of them too",
            )
        super().__post_init__()

    def replaced(self) -> set[str]:
        """See `RunArguments.replaced`."""
        for_several = set() if len(self.teachers) > 1 else {"teacher_weights", "teacher_mean"}
        for_sample = set() if self._samples() else {"soft_targets_share"}
        return super().replaced() | self._replaced_by_losses() | for_several | for_sample

    @property
    def teachers(self) -> list[str]:
        """The folders or hub names of all teachers; none if none is named."""
        if isinstance(self.teacher, str):
            return [self.teacher]
        return list(self.teacher or [])

    def _samples(self) -> bool:
        return "sampled" in (self.soft_targets, self.hidden_cosine)

    def _replaced_by_losses(self) -> set[str]:
        if self.losses is None:
            return set()
        from potstill.objective import OF_DISTILBERT  # here, because reading a recipe needs no models

        return set(OF_DISTILBERT)


@dataclass
class PretrainingArguments(Recipe):
    """Options of `potstill pretrain`: an encoder and its shape, trained by masked LM from scratch or grown."""

    masking: Literal["frequency", "uniform"] = option("uniform", "How masked tokens are sampled: see `distill`.")
    tokenizer: str | None = option(None, "Folder or hub name of the tokenizer; the corpus's own if not given.")
    model: str | None = option(None, "Continue from this model folder instead of starting from random weights.")
    model_type: str | None = option(
        None, "Architecture of a new model, by its name in transformers, such as roberta; a BERT if not given."
    )
    # Both are None until `__post_init__`, which can so tell whether they contradict a shape.
    num_hidden_layers: int = option(None, "Transformer layers; 12 if not given.")
    hidden_size: int = option(None, "Width of the hidden states; 768 if not given.")
    num_attention_heads: int | None = option(None, "Attention heads; one for every 64 of the width if not given.")
    intermediate_size: int | None = option(None, "Width of the feed-forward layers; 4 × hidden_size if not given.")
    max_position_embeddings: int = option(512, "Longest text the model can read, in tokens.")
    dropout: float | None = option(
        None, "Dropout of hidden states and attention. Default: 0.1 for a new model, else the dropout of --model."
    )
    grow: str | None = option(
        None, "Depths to grow through, such as 3,6,12: training starts shallow, and copies layers to grow."
    )
    grow_at: str | None = option(
        None, "Shares of the training at which to grow, such as 0.25,0.5; evenly over the first half if not given."
    )

    default_sizes: ClassVar[dict[str, int]] = {"num_hidden_layers": 12, "hidden_size": 768}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, size in self.default_sizes.items():
            if getattr(self, name) is None:
                setattr(self, name, size)
        sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
        for name in (*sizes, "max_position_embeddings"):
            value = getattr(self, name)
            self._check(name, value is None or value > 0, "must be above 0")
        self._check("dropout", self.dropout is None or 0 <= self.dropout < 1, "must be 0 or more and below 1")
        two = self.model is not None and self.model_type is not None
        self._check(
            "model_type", not two, "is for a new model: leave it out, because the folder of --model contains its type"
        )
        both = self.model is not None and self.shape is not None
        self._check("shape", not both, "is for a new model: leave it out, because --model has sizes of its own")

    def depths(self) -> list[int]:
        """Return the depths of the model during training; the last one is the final depth."""
        if self.grow is None:
            return [self.num_hidden_layers]
        depths = _numbers("grow", self.grow, int)
        if depths != sorted(set(depths)) or depths[0] < 1:
            raise PotstillError(f"--grow is {self.grow!r}: depths must be above 0 and increase, as in 3,6,12.")
        if depths[-1] != self.num_hidden_layers:
            raise PotstillError(
                f"--grow ends at {depths[-1]} layers but --num_hidden_layers is {self.num_hidden_layers}: "
                "make them equal."
            )
        return depths

    def growth_shares(self) -> list[float]:
        """Return the shares of the training at which each later depth begins: one for each depth but the first."""
        steps = len(self.depths()) - 1
        if self.grow_at is None:
            shares = [0.5 * (i + 1) / steps for i in range(steps)]
        else:
            shares = _numbers("grow_at", self.grow_at, float)
        if len(shares) != steps or shares != sorted(set(shares)) or not all(0 < share < 1 for share in shares):
            raise PotstillError(
                f"--grow_at is {self.grow_at!r}: it needs {steps} increasing shares between 0 and 1, one for each "
                f"growth of --grow {self.grow}."
            )
        if shares and self.average_weights is not None and shares[-1] > 1 - self.average_weights:
            raise PotstillError(
                f"--average_weights {self.average_weights} begins before the model grows for the last time, at "
                f"{shares[-1]:g} of the training: give a smaller share."
            )
        return shares


def _numbers(name: str, text: str, kind: type) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise PotstillError(f"--{name} is {text!r}: it must be numbers separated by commas.") from None
