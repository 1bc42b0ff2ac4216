"""One recurrent layer, one way, that torch can train fast and every exporter can write down.

In training and answering it is torch's own layer. While a graph is being exported it is one operation, `luban::recurrence`:
torch would otherwise unroll the layer for the length at hand. `onnx_table` says what that operation is in ONNX.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

KINDS: dict[str, type[nn.RNNBase]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class Recurrence(nn.Module):
    """x (B, T, D) -> states (B, T, H), the state before the first position being zero."""

    def __init__(self, kind: str, size: int, hidden: int):
        super().__init__()
        self.kind = kind
        self.layer = KINDS[kind](size, hidden, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            layer = self.layer
            weights = (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)
            return torch.ops.luban.recurrence(x, *weights, self.kind)
        return self.layer(x)[0]


@torch.library.custom_op("luban::recurrence", mutates_args=())
def recurrence(x: Tensor, w_in: Tensor, w_state: Tensor, b_in: Tensor, b_state: Tensor, kind: str) -> Tensor:
    """torch's layer as one operation: x (B, T, D) -> (B, T, H). Gates stand in torch's order."""
    state = x.new_zeros(1, x.shape[0], w_state.shape[1])
    settings = ([w_in, w_state, b_in, b_state], True, 1, 0.0, False, False, True)
    if kind == "lstm":
        return torch.lstm(x, [state, state], *settings)[0]
    return (torch.gru if kind == "gru" else torch.rnn_tanh)(x, state, *settings)[0]


@recurrence.register_fake
def _(x: Tensor, w_in: Tensor, w_state: Tensor, b_in: Tensor, b_state: Tensor, kind: str) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], w_state.shape[1])


# Gates of torch's weights in the order that ONNX wants them: lstm i f g o -> i o f g, gru r z n -> z r n.
ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}


def onnx_table() -> dict[Any, Any]:
    """For `torch.onnx.export(..., custom_translation_table=...)`."""
    from onnxscript import opset18 as op

    def gates(w: Any, kind: str) -> Any:
        if kind == "rnn":
            return w
        parts = op.Split(w, axis=0, num_outputs=len(ORDER[kind]))
        return op.Concat(*(parts[i] for i in ORDER[kind]), axis=0)

    def translated(x: Any, w_in: Any, w_state: Any, b_in: Any, b_state: Any, kind: str) -> Any:
        one = op.Constant(value_ints=[0])
        bias = op.Unsqueeze(op.Concat(gates(b_in, kind), gates(b_state, kind), axis=0), one)
        inputs = (
            op.Transpose(x, perm=[1, 0, 2]),
            op.Unsqueeze(gates(w_in, kind), one),
            op.Unsqueeze(gates(w_state, kind), one),
            bias,
        )
        hidden = w_state.shape[1]
        if kind == "lstm":
            y, _, _ = op.LSTM(*inputs, hidden_size=hidden)
        elif kind == "gru":
            y, _ = op.GRU(*inputs, hidden_size=hidden, linear_before_reset=1)
        else:
            y, _ = op.RNN(*inputs, hidden_size=hidden)
        return op.Transpose(op.Squeeze(y, op.Constant(value_ints=[1])), perm=[1, 0, 2])

    return {torch.ops.luban.recurrence.default: translated}
