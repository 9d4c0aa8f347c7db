"""Whether a model can take the generic path: asked of the model itself, on a few random tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.errors import first_line
from potstill.student.generic_run import layer_lists, replaced_forward, run
from potstill.student.interface import is_headless
from potstill.student.states import Reads, States

if TYPE_CHECKING:
    from potstill.student.generic import Generic

LENGTH = 7
"""Of the random text: a prime, so that a model cannot read it in parts of equal length without padding it."""


@torch.no_grad()
def unusable(family: Generic, model: PreTrainedModel) -> str | None:
    """Return why a model cannot take the generic path, ready to follow "it …"; None if it can.

    Args:
        family: of the model.
        model: in any mode, on any device; left as it is.
    """
    if (reason := family.unsupported(model.config) or _structure(model)) is not None:
        return reason
    was_training = model.training
    try:
        return _computation(family, model.eval())
    except Exception as error:  # of the many that models raise
        return f"does not run on token ids alone, or not in parts ({first_line(error)})"
    finally:
        model.train(was_training)


def _structure(model: PreTrainedModel) -> str | None:
    depth, found = model.config.num_hidden_layers, layer_lists(model)
    if not found:
        return f"has no list of its {depth} layers: layers that share their weights, for example, cannot be left out"
    if len(found) > 1:
        return f"has more than one list of {depth} layers ({found[0]} and {found[1]}), and potstill leaves out of one"
    if is_headless(model):
        return None
    output: Any = model.get_output_embeddings()
    if getattr(output, "weight", None) is None:
        return "has no output embeddings: transformers does not say which matrix its logits come from"
    if output.weight.shape[0] != model.config.vocab_size:
        return f"has {output.weight.shape[0]} output embeddings where its vocab_size is {model.config.vocab_size}"
    return None


def _computation(family: Generic, model: PreTrainedModel) -> str | None:
    depth, vocabulary = model.config.num_hidden_layers, model.config.vocab_size
    length = min(LENGTH, family.usable_length(model.config) or LENGTH)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (2, length), generator=generator).to(model.device)
    if is_headless(model):
        return _no_state_of_each_token(family.encode(model, ids, Reads("none", frozenset(range(depth)))), ids)
    logits = run(model, ids).logits
    if logits.shape != (2, length, vocabulary):
        return f"gives logits of the shape {tuple(logits.shape)} for 2 × {length} tokens of {vocabulary}"
    if family.causal:
        last = ids.clone()
        last[:, -1] = (last[:, -1] + 1) % vocabulary
        if not _close(run(model, last).logits[:, :-1], logits[:, :-1]):
            return "is no causal language model: its tokens see those after them"
    after = 100 * torch.randn(2, length, vocabulary, generator=generator).to(logits)
    output: Any = model.get_output_embeddings()
    with replaced_forward(output, lambda hidden: after):
        changed = run(model, ids).logits
    if not torch.equal(changed, after):
        return "changes its logits after its output embeddings (a bias, a scale or a cap, for example)"
    states, head = family.encode(model, ids, Reads("all", frozenset(range(depth)))), family.head(model)
    whole = torch.nn.functional.linear(head.transform(states.last), head.weight, head.bias)
    if not _close(whole, logits):
        return "does not multiply its last hidden states by its output embeddings"
    return _no_state_of_each_token(states, ids)


def _no_state_of_each_token(states: States, ids: Tensor) -> str | None:
    if any(hidden.shape[:2] != ids.shape for hidden in states.hidden.values()):
        return "has layers that do not make one hidden state of each token"
    return None


def _close(found: Tensor, expected: Tensor) -> bool:
    """Return whether two tensors are equal but for rounding."""
    allowed = torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().max()
    return bool((found - expected).abs().max() <= allowed)
