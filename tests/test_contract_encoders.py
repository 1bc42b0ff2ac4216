"""Contract battery of encoders: runs over every registered encoder and every form of input that it accepts.

A new encoder needs no test of its own here; each check below is also run on a planted fault that it must find.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from luban import registry
from luban.columns.base import Column
from luban.columns.category import Category
from luban.columns.image import Image
from luban.columns.number import Number
from luban.columns.text import Text
from luban.columns.video import Video
from luban.nn.forms import GAIN, MANY
from luban.nn.fusion import Concat
from luban.nn.heads.category import CategoryHead
from luban.nn.tokens import Encoder, Pool, Tokens
from luban.part import Part
from luban.recipe import fill
from tests import checkpoints

B, T = 5, 9


@dataclass(frozen=True)
class Readings(Column):
    """A toy column of vectors."""

    type: ClassVar[str] = "readings"
    form: ClassVar[str] = "vectors"

    @property
    def size(self):
        return 6


def columns_of(form):
    if form == "scalar":
        return [Number("a").fit([1, 2, 3, 4.5]), Number("b").fit([0, None, 7, 7])]
    if form == "index":
        return [Category("a").fit(["x", "y"]), Category("b").fit(["p", "q", "r"])]
    if form == "ids":
        return [Text("t", tokens="words").fit(["one two three four five six seven eight nine ten"] * 2)]
    if form == "frames":
        return [Video("v", frames=4).fit(list(np.random.default_rng(0).integers(0, 256, (4, 6, 12, 10, 3), np.uint8)))]
    if form == "grid":
        return [Image("i").fit(np.random.default_rng(0).integers(0, 256, (4, 12, 10, 3), np.uint8))]
    return [Readings("v")]


def batch_of(form, columns):
    random = torch.Generator().manual_seed(3)
    if form == "scalar":
        return torch.randn(B, 2, generator=random), torch.tensor([[True, False]] * 2 + [[True, True]] * 3)
    if form == "index":
        return torch.randint(0, 3, (B, 2), generator=random), torch.ones(B, 2, dtype=torch.bool)
    if form == "frames":
        clips = torch.randint(0, 256, (B, 4, 3, 12, 10), generator=random, dtype=torch.uint8)
        return clips, torch.ones(B, dtype=bool)
    if form == "grid":
        return torch.randint(0, 256, (B, 3, 12, 10), generator=random, dtype=torch.uint8), torch.ones(B, dtype=bool)
    lengths = torch.tensor([T, 1, 4, 7, 2])
    mask = torch.arange(T) < lengths[:, None]
    if form == "ids":
        return torch.randint(1, columns[0].size, (B, T), generator=random) * mask, mask
    return torch.randn(B, T, 6, generator=random) * mask[..., None], mask


def made(name, form, /, **settings):
    columns = columns_of(form)
    if name == "pretrained":
        settings |= {"name": checkpoints.folder(settings.get("name", "bert"))}
        columns = [Text("t", tokens_of=settings["name"]).fit(checkpoints.TEXTS)]
    torch.manual_seed(0)
    part = fill("encoders", Part(name, settings), "nano")
    return registry.find("encoders", name)(
        columns, **{k: v for k, v in part.settings.items() if v is not None}
    ).eval(), batch_of(form, columns)


ELSEWHERE = ("timm",)  # a library of its own: test_vision.py
CASES = [(n, f) for n in registry.ENCODERS if n not in ELSEWHERE for f in registry.schema("encoders", n)["x-accepts"]]
SETTINGS = [
    *((n, f, {}) for n, f in CASES),
    *(("pretrained", "ids", {"name": family}) for family in checkpoints.FAMILIES if family != "bert"),
    *((n, "ids", {"pooling": p}) for n in ("bilstm", "lstm", "cnn") for p in ("last", "mean", "max", "attention")),
    ("pretrained", "ids", {"pooling": "first"}),
    ("bilstm", "ids", {"layers": 2}),
    ("lstm", "vectors", {"hidden": [8, 6]}),
    ("attention", "ids", {"kind": "self"}),
    ("attention", "ids", {"over": {"bilstm": {"hidden": 6}}}),
    ("bag", "ids", {"kind": "counts", "layers": [7, 5]}),
    ("transformer", "ids", {"positions": "learnt"}),
    ("cnn", "grid", {"dense": [], "pooling": "mean"}),
    ("cnn", "grid", {"channels": [4, 8], "padding": 0, "activation": "gelu"}),
    ("resnet", "grid", {"depth": 50, "stem": "imagenet", "stochastic_depth": 0.2}),
    ("vgg", "grid", {"depth": 16, "norm": False, "dense": [7]}),
    ("alexnet", "grid", {"dense": [6]}),
    ("lenet", "grid", {"activation": "relu", "pool": "max"}),
    ("vit", "grid", {"pooling": "first", "patch": 5}),
    ("cnn", "ids", {"channels": [6, 5], "kernel": [1, 2, 4]}),
    ("cnn", "ids", {"grams": 3}),
    ("cnn", "ids", {"grams": 1, "channels": [6], "pooling": "root"}),
    ("bag", "ids", {"grams": 2}),
]
DEEP = ("densenet", "efficientnet", "inception")  # so many kinks that the steps of a path cross several at once
LONG = [s for s in SETTINGS if s[1] in ("ids", "vectors")]
every = pytest.mark.parametrize(("name", "form", "settings"), SETTINGS, ids=str)
sequences = pytest.mark.parametrize(("name", "form", "settings"), LONG, ids=str)


def run(encoder, x, mask):
    return encoder(encoder.embed(x, mask), mask)


def answer(encoder, x, mask):
    """What a fusion sees: one vector an example."""
    torch.manual_seed(1)
    return Pool(encoder.pooling, encoder.size, encoder.length, encoder.ways)(run(encoder, x, mask))


class Sloppy(Encoder):
    """The planted faults: takes the mean over padding as well, cuts the gradient, throws dice."""

    accepts = ("ids", "vectors")

    def __init__(self, columns, fault):
        super().__init__()
        self.fault, self.table = fault, nn.Embedding(columns[0].size, 4)
        self.size, self.length, self.pooling = 4, 1, "flatten"

    def embed(self, x, mask):
        return self.table(x)

    def forward(self, embedded, mask):
        if self.fault == "gradient":
            embedded = embedded.detach()
        h = (
            embedded.mean(1, keepdim=True)
            if self.fault == "mask"
            else (embedded * mask[..., None]).sum(1, keepdim=True)
        )
        h = h + torch.randn(1) if self.fault == "dice" else h * (h > 0) if self.fault == "bent" else h
        return Tokens(h, h.new_ones(h.shape[:2], dtype=torch.bool))


def sloppy(fault):
    torch.manual_seed(0)
    columns = columns_of("ids")
    return Sloppy(columns, fault).eval(), batch_of("ids", columns)


# -- shapes ----------------------------------------------------------------------------------------------------------
@every
def test_shapes(name, form, settings):
    encoder, (x, mask) = made(name, form, **settings)
    t = run(encoder, x, mask)
    assert t.x.ndim == 3 and t.x.shape[0] == B and t.x.shape[2] == encoder.size
    assert t.mask.shape == t.x.shape[:2] and t.mask.dtype == torch.bool
    assert encoder.length in (None, t.x.shape[1])
    assert t.x.isfinite().all() and t.x.dtype == torch.float32
    assert all(0 <= s.start < s.stop <= t.x.shape[1] and np.prod(s.grid) == s.stop - s.start for s in t.spans)


@every
def test_every_parameter_learns(name, form, settings):
    encoder, (x, mask) = made(name, form, **settings)
    if not list(encoder.parameters()):  # pixels as they are
        return
    (answer(encoder, x, mask) - 1).square().sum().backward()  # a row that begins at zero has a slope there
    silent = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    if name == "mlp" or form == "grid":  # a ReLU may sleep on five examples, a number may never be missing
        silent = [n for n in silent if encoder.get_parameter(n).grad is None]
    assert not silent


# -- padding ---------------------------------------------------------------------------------------------------------
def padding_gap(encoder, x, mask):
    """How far answers move when sequences are cut to their length, padded further, or padded with rubbish."""
    whole, gap = answer(encoder, x, mask), 0.0
    more_x, more_mask = torch.cat([x, torch.ones_like(x)], 1), torch.cat([mask, torch.zeros_like(mask)], 1)
    gap = max(gap, float((answer(encoder, more_x, more_mask) - whole).abs().max().detach()))
    for i, n in enumerate(mask.sum(1).tolist()):
        alone = answer(encoder, x[i : i + 1, :n], mask[i : i + 1, :n])
        gap = max(gap, float((alone - whole[i]).abs().max().detach()))
    return gap


@sequences
def test_padding_never_changes_an_answer(name, form, settings):
    encoder, (x, mask) = made(name, form, **settings)
    assert padding_gap(encoder, x, mask) < 2e-6


def test_control_padding():
    encoder, (x, mask) = sloppy("mask")
    assert padding_gap(encoder, x, mask) > 1e-2


@sequences
def test_an_empty_text_is_answered_with_numbers(name, form, settings):
    encoder, (x, mask) = made(name, form, **settings)
    x, mask = x.clone(), mask.clone()
    x[0], mask[0] = 0, False
    out = answer(encoder.train(), x, mask)
    if out.requires_grad:
        out.square().sum().backward()
    assert out.isfinite().all() and all(p.grad.isfinite().all() for p in encoder.parameters())


# -- what explanations rest on -----------------------------------------------------------------------------------------
@every
def test_embedded_is_what_counts(name, form, settings):
    encoder, (x, mask) = made(name, form, **settings)
    embedded = encoder.embed(x, mask).detach().requires_grad_(True)
    assert torch.equal(encoder(embedded, mask).x, run(encoder, x, mask).x)
    answer_of = Pool(encoder.pooling, encoder.size, encoder.length, encoder.ways)(encoder(embedded, mask))
    (slope,) = torch.autograd.grad(answer_of.square().sum(), embedded)
    assert slope.abs().sum() > 0


def test_control_embedded():
    encoder, (x, mask) = sloppy("gradient")
    embedded = encoder.embed(x, mask).detach().requires_grad_(True)
    assert not encoder(embedded, mask).x.requires_grad


def completeness(encoder, x, mask, steps=400):
    """Integrated gradients of a fixed answer's score from nothing (0) to x: sum of attributions / true difference."""
    torch.manual_seed(2)
    encoder = encoder.double()
    fusion = Concat([encoder], layers=[6], activation="tanh", dropout=0.0).double().eval()
    head = CategoryHead(Category("y").fit(["a", "b", "c"]), fusion.size).double()
    full = encoder.embed(x, mask).double().detach()
    share = (torch.arange(steps) + 0.5).repeat_interleave(len(x)) / steps  # all points of all paths in one batch
    whole = full.repeat(steps, *[1] * (full.ndim - 1))
    points = (whole * share.view(-1, *[1] * (full.ndim - 1))).requires_grad_(True)
    answers = torch.zeros(len(points), dtype=torch.int64)
    score = lambda e, m: head.score(head(fusion([encoder(e, m)])), answers[: len(e)])  # noqa: E731
    (slope,) = torch.autograd.grad(score(points, mask.repeat(steps, *[1] * (mask.ndim - 1))).sum(), points)
    total = (slope * whole).flatten(1).sum(1).view(steps, -1).mean(0)
    return float((total - (score(full, mask) - score(full * 0, mask))).abs().max().detach())


@pytest.mark.parametrize(("name", "form"), CASES, ids=str)
def test_integrated_gradients_add_up(name, form):
    encoder, (x, mask) = made(name, form)
    if name in DEEP:
        assert completeness(encoder, x[:2], mask[:2]) < 5e-2
    else:
        assert completeness(encoder, x, mask) < 5e-3


def test_control_integrated_gradients():
    class Hidden(Sloppy):
        def forward(self, embedded, mask):  # part of the answer goes round the gradient
            t = super().forward(embedded, mask)
            return t._replace(x=t.x + embedded.detach().sum(1, keepdim=True))

    torch.manual_seed(0)
    columns = columns_of("ids")
    assert completeness(Hidden(columns, ""), *batch_of("ids", columns)) > 2e-2


# -- the same again ------------------------------------------------------------------------------------------------------
@every
def test_evaluation_throws_no_dice(name, form, settings):
    encoder, (x, mask) = made(name, form, **settings)
    assert torch.equal(run(encoder, x, mask).x, run(encoder, x, mask).x)


def test_control_dice():
    encoder, (x, mask) = sloppy("dice")
    assert not torch.equal(run(encoder, x, mask).x, run(encoder, x, mask).x)


@every
def test_weights_are_all_there_is(name, form, settings):
    encoder, (x, mask) = made(name, form, **settings)
    other, _ = made(name, form, **settings)
    with torch.no_grad():
        for p in other.parameters():
            p.normal_()
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(run(encoder, x, mask).x, run(other, x, mask).x)


@every
def test_an_example_is_answered_alike_alone_and_in_company(name, form, settings):
    encoder, (x, mask) = made(name, form, **settings)
    together = answer(encoder, x, mask)
    alone = torch.cat([answer(encoder, x[i : i + 1], mask[i : i + 1]) for i in range(B)])
    assert (together - alone).abs().max() < 2e-6 * max(1, float(together.detach().abs().max()))


class Whole(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.pool = encoder, Pool(encoder.pooling, encoder.size, encoder.length, encoder.ways)

    def forward(self, x, mask):
        return self.pool(self.encoder(self.encoder.embed(x, mask), mask))


QUICK = [("lstm", "ids"), ("cnn", "grid"), ("mlp", "scalar")]


@pytest.mark.parametrize(
    ("name", "form"), [pytest.param(*c, marks=[] if c in QUICK else pytest.mark.slow) for c in CASES], ids=str
)
@pytest.mark.filterwarnings("ignore")
def test_exports_with_any_batch_and_length(name, form):
    encoder, (x, mask) = made(name, form)
    whole = Whole(encoder).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    axes = {0: batch}
    if form in ("ids", "vectors"):
        axes[1] = torch.export.Dim("length", min=1, max=100)
    program = torch.export.export(
        whole, (x, mask), dynamic_shapes=({**axes}, {k: v for k, v in axes.items() if k < mask.ndim}), strict=False
    ).module()
    for rows in (1, 3):
        length = 4 if 1 in axes else None
        some, seen = (x[:rows], mask[:rows]) if length is None else (x[:rows, :length], mask[:rows, :length])
        assert (program(some, seen) - whole(some, seen)).abs().max() < 1e-5


RECURRENT = ["rnn", "gru", "lstm", "bilstm", "attention", "transformer"]
GRAMS = [(n, {"grams": g}) for n in ("cnn", "bag") for g in (1, 2, 3)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), [*((n, {}) for n in RECURRENT), *GRAMS], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_onnx_answers_alike_at_any_length(name, settings, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from luban.nn.recurrence import onnx_table

    encoder, (x, mask) = made(name, "ids", **settings)
    for run in getattr(
        getattr(encoder, "form", None), "runs", ()
    ):  # they begin at zero, where a wrong hash would not show
        nn.init.normal_(run.weight)
    whole, path = Whole(encoder).eval(), str(tmp_path / "model.onnx")
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=100)}
    torch.onnx.export(
        whole,
        (x, mask),
        path,
        dynamo=True,
        dynamic_shapes=(axes, axes),
        custom_translation_table=onnx_table(),
        input_names=["x", "mask"],
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path)
    for rows, length in ((1, 1), (3, 4), (5, 9)):
        some, seen = x[:rows, :length], mask[:rows, :length]
        (found,) = session.run(None, {"x": some.numpy(), "mask": seen.numpy()})
        assert np.abs(found - whole(some, seen).detach().numpy()).max() < 1e-5


def test_runs_of_tokens_go_past_the_filters_and_add_nothing_before_they_are_learnt():
    encoder, (x, mask) = made("cnn", "ids", grams=3)
    plain, _ = made("cnn", "ids", grams=1)
    wide = encoder.form.wide
    assert torch.equal(encoder.embed(x, mask)[..., :-wide], plain.embed(x, mask))
    assert not encoder(encoder.embed(x, mask), mask).x[..., -wide:].any()
    with torch.no_grad():
        for n, run in enumerate(encoder.form.runs, 1):
            run.weight.fill_(n)
    past = encoder(encoder.embed(x, mask), mask).x[..., -wide:]
    assert torch.equal(past, torch.full_like(past, GAIN * (1 + 2 + 3)))


def test_a_longer_text_may_be_surer():
    x, mask = torch.ones(2, 4, 3), torch.tensor([[True, False, False, False], [True] * 4])
    assert torch.equal(Pool("root", 3)(Tokens(x, mask))[:, 0], torch.tensor([1.0, 2.0]))
    assert torch.equal(Pool("mean", 3)(Tokens(x, mask))[:, 0], torch.tensor([1.0, 1.0]))


def test_the_forms_are_all_tried():
    assert {f for _, f in CASES} == {"scalar", "index", "ids", "vectors", "grid", "frames"} and set(MANY) <= {
        f for _, f in CASES
    }
