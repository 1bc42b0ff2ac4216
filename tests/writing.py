"""Small networks that write, for tests."""

from functools import cache

import torch

from luban.bundle import build_network
from luban.columns import joining
from luban.columns.text import Text
from luban.nn.tokens import Batch
from luban.recipe import Recipe, fill

TEXTS = ["the cat sat on the mat", "a dog and a cat", "on the mat the dog sat", "cats and dogs", "mat, cat; hat."] * 2


def recipe(head, inputs=(), frame="row", before=False, fusion=None, length=16, **data):
    """`before`: the inputs are read in the text's own sequence."""
    outputs = {"text": {"text": {"vocabulary": 300, "length": length}}}
    model = {"text": head} | {
        n: {"joint": "text"} if before else {"transformer": {"width": 16, "layers": 1, "heads": 2}} for n in inputs
    }
    plain = {"luban": 1, "inputs": dict.fromkeys(inputs, "text"), "outputs": outputs, "model": model, "frame": frame}
    plain |= {"size": "nano"} | ({"data": data} if data else {}) | ({"fusion": fusion} if fusion else {})
    return Recipe.of(plain).resolved()


@cache
def columns(inputs=(), before=False, length=16):
    asked = recipe("gpt", inputs, before=before, length=length)
    parts = {**asked.inputs, **asked.outputs}
    made = {n: Text(n, **fill("columns", p, "nano").settings) for n, p in parts.items()}
    found = {n: c.fit(TEXTS) for n, c in made.items()}
    return {n: joining.before(found["text"], c) if before and n in inputs else c for n, c in found.items()}


def network(head="llama", inputs=(), seed=0, before=False, fusion=None, length=16, **settings):
    """A small one with weights large enough that what it reads makes a difference."""
    torch.manual_seed(seed)
    small = {"width": 16, "layers": 2} | ({} if head == "lstm" else {"heads": 4}) | settings
    asked = recipe({head: small}, inputs, before=before, fusion=fusion, length=length)
    made = build_network(asked, columns(inputs, before, length))
    for p in made.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, 0, 0.3)
    return made.eval()


def batch(net, texts, sources=None):
    """The true texts as targets, and the inputs of each."""
    known = columns(tuple(net.groups and [g[0] for g in net.groups]), bool(net.first), net.outputs["text"].length)
    found = {n: known[n] for n in ["text", *(sources or {})]}
    both = {n: found[n].collate(found[n].encode_all(v)) for n, v in {"text": texts, **(sources or {})}.items()}
    pairs = {n: tuple(map(torch.as_tensor, pair)) for n, pair in both.items()}
    return Batch({n: pairs[n] for n in sources or {}}, {"text": pairs["text"]}, len(texts))
