"""A search for the likeliest text in bf16 finds one that is nearly as likely as that of fp32."""

import numpy as np
import pytest
import torch

from luban import machine
from luban.generation.writing import Text, searched
from luban.nn.tokens import Batch
from tests.writing import network

HEADS = [("llama", {}), ("llama", {"kv_heads": 2}), ("gpt", {}), ("transformer", {"order": "pre"}), ("lstm", {})]


@pytest.mark.skipif(not machine.able("cpu"), reason="a processor that computes in bf16")
@pytest.mark.parametrize(("head", "settings"), HEADS, ids=str)
def test_a_search_in_bf16_finds_texts_that_are_nearly_as_likely(head, settings):
    """Judged in fp32, per token: what rounding makes of the order of close beginnings is no more than rounding."""
    net, likely = network(head, (), **settings), {}
    for precision in ("fp32", "bf16"):
        (text,) = searched(net, [Text([net.writer.column.begin, 5], 8)], 4, precision=precision)
        ids = torch.tensor([[5, *text.ids]])
        batch = Batch({}, {net.written: (ids, torch.ones_like(ids, dtype=torch.bool))}, 1)
        with torch.no_grad():
            chances = net(batch)[net.written].float().log_softmax(-1)[0, 1:]
        own = chances.gather(1, ids[0, 1:, None])[:, 0]
        assert np.allclose(own, text.log_probabilities, atol=1e-4 if precision == "fp32" else 0.1)
        likely[precision] = float(own.mean())
    assert likely["bf16"] > likely["fp32"] - 0.05
