"""What trainings on the blocks of a corpus share: the order of blocks, evaluation, and what checkpoints hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from potstill.corpus import Blocks, Corpus, ShuffledSampler
from potstill.errors import PotstillError
from potstill.recipe import MUON, Recipe
from potstill.training.averaging import WeightAverage
from potstill.training.checkpoints import load_layer_search, save_layer_search
from potstill.training.memory import fitting_memory
from potstill.training.muon import MuonAdamW, grouped_names, muon_names
from potstill.training.objective_step import ObjectiveStep
from potstill.training.resumable import ResumableTrainer
from potstill.training.run_record import LENGTH


class BlockTrainer(ResumableTrainer):
    """Train a step on the blocks of a corpus.

    A subclass defines what a step reads of a batch (`compute_losses`), what an evaluation measures (`held_out`), and
    the contents that a resumed run must have again (`fingerprints`).

    Args:
        step: run for each micro-batch.
        corpus: the data.
        args: options of the run.
        tokenizer: saved with the student.
        headline: see `ResumableTrainer`.
        evaluation_line: see `ResumableTrainer`.
        stop_at: see `ResumableTrainer`.
        callbacks: as in `Trainer`.

    Attributes:
        corpus: as given.
        layer_search: the record of the search for the layers that the student started from; None if there was none.
            Checkpoints keep it for the results.
        average: the mean of the weights; None without `average_weights`.
    """

    unit = "tokens"

    def __init__(
        self,
        step: ObjectiveStep,
        corpus: Corpus,
        args: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        headline: str,
        evaluation_line: Callable[[dict[str, float]], str],
        stop_at: float = 1.0,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.corpus = corpus
        self.layer_search: dict[str, Any] | None = None
        self._lengths: Counter[torch.Size] = Counter()  # how many batches of each shape were read
        seed = args.seed if args.data_seed is None else args.data_seed
        super().__init__(
            step,
            args,
            ShuffledSampler(len(corpus.train), args.blocks_per_step, seed),
            headline,
            evaluation_line,
            stop_at,
            callbacks,
            data_collator=_unchanged,
            train_dataset=corpus.train,
            eval_dataset=corpus.validation if len(corpus.validation) else None,
            processing_class=tokenizer,
        )
        self.average: WeightAverage | None = None
        if args.average_weights is not None:
            self.average = WeightAverage(step, args.average_weights, self.run_control.progress)
            self.add_callback(self.average)

    def compile_and_record(self, **options: Any) -> None:
        """Compile the step and record it as CUDA graphs, if the options of the run ask for it.

        Args:
            options: further options of `torch.compile`.
        """
        if self.args.torch_compile:
            backend, mode = self.args.torch_compile_backend, self.args.torch_compile_mode
            self.step.compile_parts(backend=backend, mode=mode, **options)
        if self.args.records:
            self.step.record_graphs()

    @property
    def step(self) -> ObjectiveStep:
        """The module that runs each micro-batch, without its wrappers."""
        return self.model

    @property
    def trained(self) -> PreTrainedModel:
        """The model in training. No checkpoint contains the weights of a teacher."""
        return self.step.trained

    def parameter_groups(self, step: nn.Module, trained: PreTrainedModel) -> list[list[str]]:
        """Return the names of the parameters in each group of the optimiser of a step.

        Args:
            step: the module whose parameters are trained.
            trained: the model in it. `Trainer` makes two groups: the parameters with weight decay, and the others.
                With `--optim muon` the matrices of the model come before them.
        """
        names = [name for name, parameter in step.named_parameters() if parameter.requires_grad]
        by_muon: set[str] = set()
        if self.args.optim == MUON:
            matrices = {id(trained.get_parameter(name)) for name in muon_names(trained)}
            by_muon = {name for name in names if id(step.get_parameter(name)) in matrices}
        groups = grouped_names(names, by_muon, self.get_decay_parameter_names(step))
        return groups if self.args.optim == MUON else groups[1:]

    def create_optimizer(self, *arguments: Any, **options: Any) -> torch.optim.Optimizer:
        """Create the optimiser: that of `Trainer`, or with `--optim muon` Muon and AdamW.

        Args:
            arguments: those of `Trainer`, which differ between its versions.
            options: as above.
        """
        if self.args.optim != MUON:
            return super().create_optimizer(*arguments, **options)
        if self.optimizer is None:
            by_muon, decayed, others = (
                [self.step.get_parameter(name) for name in names]
                for names in self.parameter_groups(self.step, self.trained)
            )
            self.optimizer = MuonAdamW(
                by_muon,
                decayed,
                others,
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                weight_decay=self.args.weight_decay,
            )
        return self.optimizer

    @property
    def tokens_per_step(self) -> int:
        """Tokens that all processes read for one step of the optimiser, padding included."""
        return self.args.blocks_per_step * self.corpus.train.block_size

    @property
    def units_per_step(self) -> int:
        """See `tokens_per_step`."""
        return self.tokens_per_step

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimiser in an epoch. The last blocks are left out if they do not fill a step."""
        return len(self.sampler) // self.args.blocks_per_step

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **options: Any) -> Any:
        """Train as `ResumableTrainer.train` does, with the parameters that the student has now.

        With `average_weights` the student has the mean of its weights at the end.
        """
        self.step.refresh()
        if self.average is not None:
            self.average.clear()
        result = super().train(resume_from_checkpoint, **options)
        if self.average is not None and self.average.steps:
            if len(self.corpus.validation):
                self.average.last_weights = self.held_out(self.corpus.validation)
            self.average.apply()
            first, last = self.average.first_step, self.state.global_step
            self._log_line(f"The weights are now the mean of those after the steps {first:,} to {last:,}.")
        return result

    def exclude_first_steps(self, shape: torch.Size) -> None:
        """Leave the time of a step out of the clock if code for batches of this shape is compiled or recorded in it."""
        self._lengths[shape] += 1
        if self._lengths[shape] <= (2 if self.args.records else 1):  # compiled first, then recorded
            self.run_control.clock.exclude_step()

    def held_out(self, blocks: Blocks) -> dict[str, float]:
        """Return the metrics of student and teachers on held-out blocks."""
        raise NotImplementedError

    def evaluate(
        self, eval_dataset: Blocks | None = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate student and teachers on held-out blocks: see `held_out` for the metrics.

        Raises:
            PotstillError: there are no held-out blocks, or a batch of them does not fit into memory.
        """
        blocks = self.corpus.validation if eval_dataset is None else eval_dataset
        if len(blocks) == 0:
            raise PotstillError(
                "The corpus has no held-out block to evaluate on: prepare it with a larger --validation_fraction."
            )
        with self.excluded_time():
            with fitting_memory(self.args, evaluation=True):
                metrics = self.held_out(blocks)
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def sum_over_processes(self, sums: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        return self.accelerator.reduce(sums, "sum")

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self._staging is not None and self.args.should_save:  # this is a checkpoint, not just the student
            self.step.save_objective(output_dir or self.args.output_dir)
            if self.average is not None:
                self.average.save(output_dir or self.args.output_dir)
            save_layer_search(self.layer_search, output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.step.load_objective(resume_from_checkpoint)
        if self.average is not None:
            self.average.load(resume_from_checkpoint)
        self.layer_search = load_layer_search(resume_from_checkpoint)

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> Any:
        result = super()._init_training_state(max_steps, *args, **kwargs)
        if self.average is not None and self._changed & LENGTH:
            first = self.average.first_step
            if self.average.fit_length(self.state, self.args.minutes is not None):
                self._log_line(
                    f"The mean of the weights begins again, because the steps from {first:,} on are no longer in the "
                    "last part of the run."
                )
        return result

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.step.load_objective(Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}")

    def create_accelerator_and_postprocess(self) -> None:
        """Do as `Trainer` does, but let the step compile its layers itself."""
        backend, self.args.torch_compile_backend = self.args.torch_compile_backend, None
        super().create_accelerator_and_postprocess()
        self.args.torch_compile_backend = backend


def _unchanged(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the batch unchanged: `Blocks` already returns whole batches."""
    return batch
