"""How good a student is before training, for any choice of its teacher's layers. No student is built for a choice."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.corpus.labelling import LabelledBlocks
from potstill.student import build_student, family_of, is_headless
from potstill.training.evaluation import predictions


@dataclass(frozen=True)
class LayerScore:
    """What an untrained student says on held-out blocks.

    Attributes:
        layers: the teacher layers that it consists of.
        loss: of masked or causal LM, in nats; without a head, the mean over all tokens of 1 − cosine of the last hidden
            states of student and teacher. It may be NaN or infinite.
        accuracy: share of the tokens that are predicted correctly; None without a head.
        kl: KL divergence (teacher ‖ student) at the same tokens, in nats; None without a head.
    """

    layers: tuple[int, ...]
    loss: float
    accuracy: float | None = None
    kl: float | None = None

    def __str__(self) -> str:
        if self.accuracy is None:
            return f"1 − cosine {self.loss:.4f}"
        return f"loss {self.loss:.3f}, accuracy {self.accuracy:.1%}, KL {self.kl:.3f}"

    def record(self) -> dict[str, Any]:
        """Return what was measured, for a file of JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class UntrainedStudents:
    """Scores the student that a choice of layers would give, as `build_student` would build it.

    One student of the teacher's full depth is built. A choice is a list of this student's layers, which run in place
    of all of them between the same embeddings and the same head. A family that runs the forward pass of its models
    (`Family.encodes_whole`) may find other layers there than its config says, so each choice is built.

    Args:
        teacher: a language model or an encoder of a known family, in eval mode.
        batches: held-out blocks on the teacher's device, at least one batch; with labels for a language model.
        fold_token_types: see `build_student`.
    """

    @torch.no_grad()
    def __init__(
        self, teacher: PreTrainedModel, batches: Sequence[LabelledBlocks], fold_token_types: bool = True
    ) -> None:
        self._teacher = teacher
        self._fold_token_types = fold_token_types
        self._model = self._student(range(teacher.config.num_hidden_layers))
        self._family = family_of(self._model)
        self._stack = self._family.layers(self._model)
        self._layers = list(self._stack)
        self._batches = batches
        self._headless = is_headless(teacher)
        self._expected = [self._read(teacher, batch) for batch in batches]
        self._start: tuple[int, ...] = ()
        self._outputs: list[list[Any]] = []  # of each batch: what each layer of the start returned

    @torch.no_grad()
    def score(self, layers: Sequence[int]) -> LayerScore:
        """Return the score of the student of these layers, computed in float32.

        Args:
            layers: teacher layers, at least one, in the order in which they run.
        """
        model = self._student(layers) if self._family.encodes_whole else self._model
        shared = _shared(self._start, layers)
        sums = torch.zeros(4, dtype=torch.float64)
        for number, batch in enumerate(self._batches):
            if not self._family.encodes_whole:
                chosen = [self._layers[layer] for layer in layers]
                if shared:
                    chosen[:shared] = [_Known(self._outputs[number][shared - 1], chosen[shared - 1])]
                del self._stack[:]
                self._stack.extend(chosen)
            found, expected = self._read(model, batch), self._expected[number]
            if self._headless:
                distance = 1 - F.cosine_similarity(found, expected, dim=-1)
                measured = [distance.numel(), distance.sum().item(), 0, 0]
            else:
                labels = batch.labels[batch.labels >= 0]
                measured = [
                    labels.numel(),
                    F.nll_loss(found, labels, reduction="sum").item(),
                    (found.argmax(-1) == labels).sum().item(),
                    F.kl_div(found, expected, reduction="sum", log_target=True).item(),
                ]
            sums += torch.tensor(measured, dtype=torch.float64)
        tokens, loss, correct, kl = sums.tolist()
        if self._headless:
            return LayerScore(tuple(layers), loss / tokens)
        return LayerScore(tuple(layers), loss / tokens, correct / tokens, kl / tokens)

    def start_from(self, layers: Sequence[int]) -> None:
        """Keep what each of these layers puts out. A later choice that begins alike does not compute it again."""
        if self._family.encodes_whole:
            return
        self._start, returned = (), []
        hooks = [
            self._layers[number].register_forward_hook(lambda layer, inputs, output: returned.append(output))
            for number in set(layers)
        ]
        try:
            self.score(layers)
        finally:
            for hook in hooks:
                hook.remove()
        self._start = tuple(layers)
        self._outputs = [returned[first : first + len(layers)] for first in range(0, len(returned), len(layers))]

    def _read(self, model: PreTrainedModel, batch: LabelledBlocks) -> Tensor:
        """Return the float32 log-probabilities (N, V) at the labelled tokens; without a head, states (B, L, H)."""
        if self._headless:
            return family_of(model).encode(model, batch.input_ids).last.float()
        return predictions(model, batch)[1]

    def _student(self, layers: Sequence[int]) -> PreTrainedModel:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the student of the run will warn
            return build_student(self._teacher, layers=layers, fold_token_types=self._fold_token_types)


class _Known(nn.Module):
    """Stands for layers whose output is known. It looks like the last one of them.

    Args:
        output: what the last of these layers returned.
        layer: the layer that made it. A family may read from it of what kind it is.
    """

    def __init__(self, output: Any, layer: nn.Module) -> None:
        super().__init__()
        self.output = output
        self.layer = layer

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Return the known output."""
        return self.output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


def _shared(known: Sequence[int], layers: Sequence[int]) -> int:
    """Return how many layers two choices begin with in common."""
    pairs = zip(known, layers, strict=False)
    return next((number for number, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(known), len(layers)))
