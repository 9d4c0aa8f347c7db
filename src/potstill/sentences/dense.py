"""The Dense module of a sentence encoder: a linear layer and an activation over the pooled vector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from potstill.errors import PotstillError, first_line
from potstill.json_files import json_text
from potstill.panics import panics_as_errors
from potstill.student.weights import WEIGHTS, check_finite

ACTIVATIONS: dict[str, type[nn.Module]] = {
    activation.__name__: activation
    for activation in (nn.Identity, nn.Tanh, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid)
}


class Dense(nn.Module):
    """`activation(x @ weight.T + bias)`, from (N, in) to (N, out).

    Args:
        in_features: width of the input.
        out_features: width of the output.
        bias: whether there is one.
        activation: a name in `ACTIVATIONS`.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, activation: str = "Identity") -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, pooled: Tensor) -> Tensor:
        """Return (N, out) of (N, in)."""
        return self.activation(self.linear(pooled))

    def fresh(self) -> Dense:
        """Return a Dense module of the same form, with random weights."""
        linear = self.linear
        name = type(self.activation).__name__
        return Dense(linear.in_features, linear.out_features, linear.bias is not None, name)

    @classmethod
    def load(cls, folder: Path, config: dict[str, Any], where: str) -> Dense:
        """Load a Dense module of sentence-transformers.

        Args:
            folder: of the module.
            config: of the module.
            where: whose it is, for messages: "the module 2_Dense of the teacher 'x'".

        Raises:
            PotstillError: it computes something else, or its weights are pickled, missing, damaged, not finite or of
                another shape than its config says.
        """
        name = _activation(config, where)
        inputs, outputs = config.get("in_features"), config.get("out_features")
        if not isinstance(inputs, int) or not isinstance(outputs, int):
            raise PotstillError(f"the config of {where} has no in_features and out_features: restore it")
        if config.get("use_residual"):
            raise PotstillError(
                f"{where} adds its input to its output (use_residual), which potstill does not compute: use an encoder "
                "without it"
            )
        file = folder / WEIGHTS
        if not file.is_file():
            if any(folder.glob("*.bin")):
                raise PotstillError(
                    f"{where} has only pickled weights, which can run code when they are read: convert them to "
                    "safetensors (load the encoder in sentence-transformers where you trust it, then save it)"
                )
            raise PotstillError(f"{where} has no weights: there is no {WEIGHTS} in its folder")
        try:
            with panics_as_errors():
                state = load_file(file)
        except Exception as error:  # of safetensors' own type, an OSError, or a panic
            raise PotstillError(
                f"the weights of {where} are damaged or incomplete: copy or download it again ({first_line(error)})"
            ) from error
        bias = bool(config.get("bias", True))
        shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
        wanted = {"linear.weight": (outputs, inputs)} | ({"linear.bias": (outputs,)} if bias else {})
        if shapes != wanted:
            raise PotstillError(f"the weights of {where} do not fit its config: restore it as it was saved")
        # After the shapes are known, so that a config cannot ask for all memory. The weights are all replaced.
        with torch.random.fork_rng(devices=[]):
            dense = cls(inputs, outputs, bias, name)
        dense.load_state_dict(state)
        check_finite(dense, where)
        return dense

    def save(self, folder: Path) -> None:
        """Write the module in the form of sentence-transformers into a folder, which is made."""
        folder.mkdir(exist_ok=True)
        linear = self.linear
        config = {
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "bias": linear.bias is not None,
            "activation_function": f"{type(self.activation).__module__}.{type(self.activation).__name__}",
        }
        (folder / "config.json").write_text(json_text(config, "the config of a Dense module"), encoding="utf-8")
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in self.state_dict().items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def _activation(config: dict[str, Any], where: str) -> str:
    """Return the name of a module's activation; Tanh if the config names none, as in sentence-transformers."""
    path = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    name = str(path).rpartition(".")[2]
    if not str(path).startswith("torch.nn.") or name not in ACTIVATIONS:
        raise PotstillError(
            f"{where} has the activation {path}, which potstill does not know: it knows {', '.join(ACTIVATIONS)} of "
            "torch.nn, and never runs other code"
        )
    return name
