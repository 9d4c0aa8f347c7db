"""An LSTM in both directions that gives the last state of each row, whatever the padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LastStates(nn.Module):
    """A layer of LSTMs in both directions, and their last states.

    The LSTM that reads backwards gets each row reversed, so that it begins at the row's last token and not in the
    padding. Rows are not packed: that would need their lengths on the CPU in every step.

    Args:
        inputs: width of the inputs.
        units: units of each direction.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.forwards = nn.LSTM(inputs, units, batch_first=True)
        self.backwards = nn.LSTM(inputs, units, batch_first=True)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return the last states of both directions, (B, 2H); 0 for a row without tokens.

        Args:
            inputs: (B, L, E), with the padding on the right.
            lengths: (B,) int64, number of tokens in each row.
        """
        last = (lengths - 1).clamp(min=0)[:, None]
        places = (last - torch.arange(inputs.shape[1], device=inputs.device)).clamp(min=0)
        reverse = inputs.gather(1, places[:, :, None].expand_as(inputs))
        states = torch.cat([self._run(0, inputs), self._run(1, reverse)], dim=-1)
        found = states.gather(1, last[:, :, None].expand(-1, 1, states.shape[-1]))[:, 0]
        return found * (lengths > 0)[:, None]

    def _run(self, direction: int, inputs: Tensor) -> Tensor:
        """Return the states of one direction, (B, L, H)."""
        lstm = (self.forwards, self.backwards)[direction]
        if not torch.onnx.is_in_onnx_export():
            return lstm(inputs)[0]
        # torch's exporter would write the steps one by one. ONNX's LSTM could also take the lengths of the rows and do
        # both directions at once, but OpenVINO then ignores the lengths (2026.4).
        batch, length, _ = inputs.shape
        states, _, _ = torch.onnx.ops.symbolic_multi_out(
            "LSTM",
            (
                inputs.transpose(0, 1),
                *(getattr(self, f"{name}_{direction}") for name in ("inputs", "states", "biases")),
            ),
            attrs={"hidden_size": lstm.hidden_size},
            dtypes=(inputs.dtype,) * 3,
            shapes=((length, 1, batch, lstm.hidden_size), *((1, batch, lstm.hidden_size),) * 2),
            version=14,
        )
        return states.squeeze(1).transpose(0, 1)

    def for_onnx(self) -> None:
        """Add the weights in the layout of ONNX's LSTM: gates in the order input, output, forget, cell."""

        def reordered(weight: Tensor) -> Tensor:
            enter, forget, cell, leave = weight.detach().chunk(4)
            return torch.cat([enter, leave, forget, cell])[None]

        for direction, lstm in enumerate((self.forwards, self.backwards)):
            biases = torch.cat([reordered(lstm.bias_ih_l0), reordered(lstm.bias_hh_l0)], dim=1)
            found = (reordered(lstm.weight_ih_l0), reordered(lstm.weight_hh_l0), biases)
            for name, weights in zip(("inputs", "states", "biases"), found, strict=True):
                self.register_buffer(f"{name}_{direction}", weights, persistent=False)
