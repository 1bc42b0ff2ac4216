"""Networks that write: what is read once is read right, nothing leaks, and a text does not depend on its neighbours."""

import gc
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luban import machine
from luban.columns.base import GONE, Ragged
from luban.columns.examples import Examples
from luban.columns.kept import packed
from luban.columns.text import Text
from luban.errors import RequestError, Unsupported
from luban.evaluation.likelihood import likelihood, windows
from luban.generation import guessing, writing
from luban.generation.asking import computes
from luban.generation.beams import beams
from luban.generation.choosing import choose
from luban.generation.guessing import LENGTHS, PLACES, Guesses, Rates, worth
from luban.generation.sampling import GREEDY, Sampling, checked, orderly
from luban.generation.writing import STOP, Writer, searched, streamed, write, written
from luban.generation.writing import Text as Asked
from luban.nn import decoding
from luban.nn.past import Past
from luban.nn.tokens import Batch
from luban.nn.transformer import Attention
from tests.writing import TEXTS, batch, columns, network

HEADS = [
    ("llama", {}),
    ("llama", {"kv_heads": 2}),
    ("gpt", {}),
    ("transformer", {"order": "post"}),
    ("transformer", {"order": "pre"}),
    ("lstm", {"layers": 2}),
]
every = pytest.mark.parametrize(("head", "settings"), HEADS, ids=str)
bf16 = pytest.mark.skipif(not machine.able("cpu"), reason="a processor that computes in bf16")
SOURCE = {"source": TEXTS[:4]}


def made(head, settings, inputs=()):
    return network(head, inputs, **settings)


def nothing(count):
    return Batch({}, {}, count)


# -- reading with a past equals reading at once ------------------------------------------------------------------------
def stepwise_gap(net, inputs):
    """How far logits that are made token by token, rows of different lengths, are from those of one reading."""
    texts = [t[: 4 + 3 * i] for i, t in enumerate(TEXTS[:4])]
    b = batch(net, texts, inputs)
    x, mask = b.targets["text"]
    whole = net(b)["text"]
    before = torch.cat([x.new_full((4, 1), net.writer.column.begin), x[:, :-1]], 1)
    lengths, first = mask.sum(1), torch.tensor([1, 2, 1, 3])
    state, at, gap = net.start(b), torch.zeros(4, dtype=torch.long), 0.0
    most = int(first.max())
    real = torch.arange(most) < first[:, None]
    logits = net.advance(state, before[:, :most] * real, real)
    at += first
    alive = torch.arange(4)
    while len(alive):
        gap = max(gap, float((logits - whole[alive, at[alive] - 1]).abs().max().detach()))
        stay = at[alive] < lengths[alive]
        alive = alive[stay]
        if len(alive):
            state = state.take(torch.arange(len(stay))[stay])
            logits = net.advance(state, before[alive, at[alive]][:, None], torch.ones(len(alive), 1, dtype=torch.bool))
            at[alive] += 1
    return gap


@every
@pytest.mark.parametrize("inputs", [None, SOURCE], ids=["alone", "reading"])
def test_a_text_read_token_by_token_is_the_text_read_at_once(head, settings, inputs):
    net = made(head, settings, tuple(inputs or ()))
    assert stepwise_gap(net, inputs) < 2e-5


# The way that a token is read when nothing is to be learned (`luban.nn.decoding`), whole matrices and in blocks.
@pytest.fixture(params=["whole", "blocks"])
def quick(request, monkeypatch):
    if request.param == "blocks":
        monkeypatch.setattr(decoding, "BLOCK", 20)
        monkeypatch.setattr(decoding, "LEAST", 1)
        monkeypatch.setattr(decoding, "FEW", 1)
    taken = []
    real = decoding.Step.__call__
    monkeypatch.setattr(decoding.Step, "__call__", lambda *a, **k: (taken.append(1), real(*a, **k))[1])
    with torch.inference_mode():
        yield taken


@every
@pytest.mark.parametrize("inputs", [None, SOURCE], ids=["alone", "reading"])
def test_a_token_read_quickly_is_the_same(head, settings, inputs, quick):
    net = made(head, settings, tuple(inputs or ()))
    assert stepwise_gap(net, inputs) < 2e-5 and (quick or head == "lstm")


@pytest.mark.parametrize("fault", ["mask", "turn", "memory", "scale"])
def test_control_quickly(fault, monkeypatch, quick):
    net = made("llama", {}, ("source",))
    attend, turn, read = decoding._Layer._attend, decoding._turn, decoding.Step.__call__
    if fault == "mask":  # a row sees what stands behind its end
        monkeypatch.setattr(
            decoding._Layer, "_attend", lambda self, q, rows, k, v, _: attend(self, q, rows, k, v, None)
        )
    elif fault == "turn":  # every token stands at the first place
        monkeypatch.setattr(decoding, "_turn", lambda _: turn(net.writer.layers.angles[None, :1]))
    elif fault == "memory":  # one text reads what belongs to its neighbour

        def next_door(self, h, past, last=False):
            past.memory = [tuple(t.roll(1, 0) for t in pair) for pair in past.memory]
            return read(self, h, past, last)

        monkeypatch.setattr(decoding.Step, "__call__", next_door)
    else:

        def flat(self, *given):
            self.scale = 1.0
            return attend(self, *given)

        monkeypatch.setattr(decoding._Layer, "_attend", flat)
    assert stepwise_gap(net, SOURCE) > 1e-3


# Several tokens of each row at once, of which some are taken back (what guesses are read with).
AHEAD = [h for h in HEADS if h[0] != "lstm"]


def verified_gap(net, inputs, counts=(3, 1, 2), right=((2, 3, 1, 1), (1, 1, 1, 1), (2, 1, 2, 1))):
    """How far logits are from those of one reading, of rows that go on by `right` of the tokens that are read at once."""
    b = batch(net, [" ".join(TEXTS[i:] + TEXTS[:i]) for i in range(4)], inputs)
    x, _ = b.targets["text"]
    whole = net(b)["text"]
    before = torch.cat([x.new_full((4, 1), net.writer.column.begin), x[:, :-1]], 1)
    first = torch.tensor([1, 2, 1, 3])
    state, gap = net.start(b), 0.0
    net.advance(state, before[:, :3] * (torch.arange(3) < first[:, None]), torch.arange(3) < first[:, None])
    at = first.clone()
    for count, good in zip(counts, right):
        places = at[:, None] + torch.arange(count)
        good = torch.tensor(good)
        wrong = torch.arange(count) >= good[:, None]  # tokens that the rows do not have there
        logits = net.verify(state, torch.where(wrong, 3, before.gather(1, places)))
        gap = max(
            gap, float((logits - whole.gather(1, places[..., None].expand_as(logits))).abs()[~wrong].max().detach())
        )
        at = at + good
        state.rewind(at)
    return gap


@pytest.mark.parametrize(("head", "settings"), AHEAD, ids=str)
@pytest.mark.parametrize("inputs", [None, SOURCE], ids=["alone", "reading"])
@pytest.mark.parametrize("how", ["quick", "plain"])
def test_tokens_read_at_once_are_those_read_one_by_one(head, settings, inputs, how):
    net = made(head, settings | {"length": 40}, tuple(inputs or ()))
    with torch.inference_mode(how == "quick"), torch.set_grad_enabled(how != "quick"):
        assert verified_gap(net, inputs) < 2e-5


@pytest.mark.parametrize("fault", ["the future", "not taken back"])
def test_control_tokens_read_at_once(fault, monkeypatch):
    net = made("llama", {"length": 40})
    if fault == "the future":
        visible = Past.visible
        seen = lambda self, n: None if visible(self, n) is None else visible(self, n).any(2, keepdim=True)  # noqa: E731
        monkeypatch.setattr(Past, "visible", seen)
    else:
        monkeypatch.setattr(Past, "rewind", lambda *_: None)
    with torch.inference_mode():
        assert verified_gap(net, None) > 1e-3


@pytest.mark.parametrize("rows", [1, 3, 4, 9, 15, 16, 40])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("out", [64, 512, 900])
def test_a_product_in_blocks_is_the_product(rows, bias, out):
    layer, x = torch.nn.Linear(384, out, bias), torch.randn(rows, 384)
    product = decoding.Product(layer.weight, layer.bias)
    assert (product.blocks is None) == (out == 64)
    assert torch.allclose(product(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 16, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_product_is_the_product(rows, bias):
    layer, x = torch.nn.Linear(384, 900, bias), torch.randn(rows, 384)
    product, wanted = decoding.Product(layer.weight, layer.bias, packs=True), layer(x)
    assert product.packed is not None and torch.allclose(product(x), wanted, atol=1e-5)


@bf16
@pytest.mark.parametrize("rows", [1, 3, 16, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_in_bf16_is_nearly_the_product(rows, bias):
    layer, x = torch.nn.Linear(384, 900, bias), torch.randn(rows, 384)
    wanted = layer(x)
    half = decoding.Product(layer.weight, layer.bias, half=True)
    gap = (half(x) - wanted).abs().max()
    assert half(x).dtype == torch.float32 and 1e-4 < gap < 0.03, "inputs and weights are rounded to 8 bits"


@every
def test_packed_weights_write_what_they_write_where_they_lie(head, settings, monkeypatch):
    monkeypatch.setattr(decoding, "repays", lambda model: True)
    assert stepwise_gap(made(head, settings, ("source",)), SOURCE) < 2e-5


def _logits(net) -> torch.Tensor:
    """What follows two tokens, the second of them read quickly."""
    state = net.start(Batch({}, {}, 1))
    for _ in range(2):
        logits = net.advance(state, torch.tensor([[5]]), torch.ones(1, 1, dtype=torch.bool))
    return logits


CHANGES = {
    "learned": lambda layer: layer.weight.mul_(2),
    "by way of data": lambda layer: layer.weight.data.mul_(2),
    "another matrix": lambda layer: setattr(layer, "weight", torch.nn.Parameter(layer.weight * 2)),
    "somebody listens": lambda layer: layer.register_forward_hook(lambda *a: a[2] * 2),
}


@pytest.fixture
def kept(monkeypatch):
    """A GPT whose weights are packed, and how many of its matrices were."""
    monkeypatch.setattr(decoding, "repays", lambda model: True)
    count, packed = [], decoding._packed
    monkeypatch.setattr(decoding, "_packed", lambda weight: (count.append(1), packed(weight))[1])
    with torch.no_grad():
        yield made("gpt", {}), count


def test_weights_are_packed_once_for_many_texts(kept):
    net, count = kept
    first = _logits(net)
    once = len(count)
    assert once > 0 and torch.equal(_logits(net), first) and len(count) == once


@pytest.mark.parametrize("change", CHANGES)
def test_packed_weights_that_changed_are_packed_again(kept, change):
    net, _ = kept
    before = _logits(net)
    CHANGES[change](net.writer.layers.layers[0].dense.outer)
    quick = _logits(net)
    made_anew = decoding.KEPT.pop(net.writer)
    assert torch.equal(quick, _logits(net)) and made_anew
    assert not torch.allclose(quick, before, atol=1e-4)


@pytest.mark.parametrize("change", CHANGES)
def test_control_packed_weights(kept, change, monkeypatch):
    """Planted fault: nobody looks whether anything changed."""
    monkeypatch.setattr(decoding, "_state", lambda head: [])
    with pytest.raises(AssertionError):
        test_packed_weights_that_changed_are_packed_again(kept, change)


def test_a_network_that_is_gone_takes_its_packed_weights_along(kept):
    gc.collect()
    net = made("gpt", {})
    _logits(net)
    there = len(decoding.KEPT)
    del net
    gc.collect()
    assert len(decoding.KEPT) == there - 1


@bf16
@every
def test_texts_in_bf16_are_nearly_as_likely(head, settings):
    """The same ids, told their chances in both precisions; rows of different lengths, that come and leave."""
    net = made(head, settings)
    read, chances = net.advance, {}
    for precision in ("fp32", "bf16"):
        texts = [Asked([net.writer.column.begin] + [5] * i, 9 - 2 * i, GREEDY) for i in range(3)]
        told, writer = [], Writer(net, precision, ahead=0)

        def advance(*given, told=told):
            logits = read(*given)
            told.append(logits.float().log_softmax(-1)[:, 7])
            return logits

        net.advance = advance
        writer.add(texts)
        while writer.texts:
            writer.next = [(7, 0.0)] * len(writer.texts)  # forced: every text goes on with the same id
            writer.step()
        chances[precision] = torch.cat(told).numpy()
    gap = np.abs(chances["fp32"] - chances["bf16"])
    assert 0 < gap.max() < 0.1, gap


@bf16
@every
def test_what_is_read_beside_a_text_in_bf16(head, settings):
    """The memory's keys and values are made once, in bf16, and looked at by what writes quickly, in fp32."""
    net, chances = made(head, settings, ("source",)), {}
    b = batch(net, TEXTS[:3], {"source": TEXTS[:3]})
    for precision in ("fp32", "bf16"):
        for ahead in (0, 8):
            texts, writer = (
                [Asked([net.writer.column.begin], 1 + 4 * i) for i in range(3)],
                Writer(net, precision, ahead),
            )
            writer.add(texts, b)
            while writer.texts:
                writer.step()
            chances[precision, ahead] = [t.log_probabilities[0] for t in texts]
    assert np.abs(np.diff(list(chances.values()), axis=0)).max() < 0.1


@bf16
def test_control_a_memory_that_stays_in_bf16(monkeypatch):
    real = Attention._remembered

    def half(self, memory, past):
        found = real(self, memory, past)
        if past is not None:
            past[0].memory[past[1]] = tuple(t.bfloat16() for t in found)
        return found

    monkeypatch.setattr(Attention, "_remembered", half)
    with pytest.raises(RuntimeError):
        test_what_is_read_beside_a_text_in_bf16("llama", {})


def test_a_precision_that_is_only_imitated_is_refused(monkeypatch):
    monkeypatch.setattr(machine, "processor", lambda: {"name": "old", "flags": ["avx2"]})
    with pytest.raises(Unsupported, match="bf16"):
        computes("cpu", "bf16")
    computes("cpu", "fp32")
    with pytest.raises(RequestError, match="fp23"):
        orderly(precision="fp23")


def test_a_layer_that_is_not_plain_is_called():
    """What was put in the place of a linear layer does its own work; a part that is not a known one makes the step the whole."""
    net = made("llama", {})
    with torch.inference_mode():
        dense = net.writer.layers.layers[1].dense
        calls = []
        handle = dense.outer.register_forward_hook(lambda *_: calls.append(1))
        assert stepwise_gap(net, None) < 2e-5 and calls
        handle.remove()
        dense.register_forward_hook(lambda *_: None)
        state = net.start(nothing(1))
        one = torch.ones(1, 1, dtype=torch.long)
        net.advance(state, one, one.bool())
        assert state.step is False


@pytest.mark.parametrize("fault", ["lengths", "grow"])
def test_control_token_by_token(fault, monkeypatch):
    net = made("llama", {})
    if fault == "lengths":  # every row writes where the longest one is
        monkeypatch.setattr(Past, "places", lambda self, n: slice(self.longest, self.longest + n))
    else:  # what was read is forgotten
        real = Past.take
        monkeypatch.setattr(Past, "take", lambda self, rows: (p := real(self, rows), p.kept.zero_())[0])
    assert stepwise_gap(net, None) > 1e-3
    with torch.inference_mode():
        assert stepwise_gap(net, None) > 1e-3


# -- nothing leaks -------------------------------------------------------------------------------------------------------
def leak(net, inputs):
    """How far the logits before a place move when the text from there on is another one."""
    b, c = batch(net, [TEXTS[0]] * 4, inputs), batch(net, [TEXTS[0][:9] + t for t in TEXTS[1:5]], inputs)
    x, y = b.targets["text"][0], c.targets["text"][0]
    width = min(x.shape[1], y.shape[1])
    same = (x[:, :width] == y[:, :width]).long().cumprod(1).bool()  # what comes after a place is all that differs
    a, o = net(b)["text"][:, :width], net(c)["text"][:, :width]
    assert same.any() and not same.all()
    return float(((a - o).abs().amax(2) * same).max().detach())


@every
def test_the_future_does_not_change_the_past(head, settings):
    assert leak(made(head, settings), None) < 1e-5
    assert leak(made(head, settings, ("source",)), SOURCE) < 1e-5


def test_control_the_future():
    net = made("llama", {})
    for layer in net.writer.layers.layers:
        layer.causal = False
    assert leak(net, None) > 1e-3


def padding_gap(net):
    long, short = {"source": [TEXTS[0], TEXTS[0] * 3]}, {"source": [TEXTS[0]]}
    together = net(batch(net, [TEXTS[1], TEXTS[2] * 2], long))["text"][0]
    alone = net(batch(net, [TEXTS[1]], short))["text"][0]
    return float((together[: len(alone)] - alone).abs().max().detach())


@every
def test_padding_does_not_change_an_answer(head, settings):
    assert padding_gap(made(head, settings, ("source",))) < 1e-5


def test_control_padding(monkeypatch):
    monkeypatch.setattr("luban.nn.transformer.seen", lambda mask: torch.ones_like(mask))
    assert padding_gap(made("llama", {}, ("source",))) > 1e-3


# -- writing -------------------------------------------------------------------------------------------------------------
def greedy(net, prompt, most):
    ids = list(prompt)
    for _ in range(most):
        x = torch.tensor([[*ids[1:], 0]])
        logits = net.writer.logits(None, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))[0, -1]
        ids.append(int(logits.argmax()))
        assert x.shape[1] == len(ids) - 1
        if ids[-1] == net.writer.column.end:
            break
    return ids[len(prompt) :]


@every
def test_written_side_by_side_as_alone(head, settings):
    """Several prompts of different lengths, one of which joins later, give what each gives by itself."""
    net = made(head, settings)
    column = columns()["text"]
    prompts = [column.prompt(t).tolist() for t in ("the", "a dog and", "", "on the mat the")]
    alone = [greedy(net, p, 6) for p in prompts]
    texts = [Asked(p, 6) for p in prompts]
    writer = Writer(net)
    writer.add(texts[:3])
    writer.step()
    writer.step()
    writer.add(texts[3:])
    while writer.texts:
        writer.step()
    assert [t.ids for t in texts] == alone
    assert all(t.reason in ("end", "length") for t in texts)


# -- guesses ---------------------------------------------------------------------------------------------------------
WAYS = [
    GREEDY,
    Sampling(temperature=0.3),
    Sampling(temperature=0.0, repetition_penalty=1.05),
    Sampling(temperature=0.5, top_k=3),
]


def _guessed(net, ahead, inputs=None):
    """Texts of all ways side by side, some of which join late; how often tokens were read, and whether several at once."""
    read = []
    verify, advance = net.verify, net.advance
    net.verify = lambda *given: (read.append(1), verify(*given))[1]
    net.advance = lambda *given: (read.append(0), advance(*given))[1]
    begin = net.writer.column.begin
    asked = lambda n: [Asked([begin, 5, 6, 7, 5, 6, 7, 5][: 8 - i], n - 5 * i, s) for i, s in enumerate(WAYS)]  # noqa: E731
    first, late = asked(60), asked(40)
    late[0].stop, late[1].streamed = (" a",), True
    give = lambda: batch(net, TEXTS[:4], inputs) if inputs else nothing(4)  # noqa: E731
    writer = Writer(net, ahead=ahead)
    writer.add(first, give())
    for _ in range(3):
        writer.step()
    writer.add(late, give())
    while writer.texts:
        writer.step()
    del net.verify, net.advance
    return [(t.ids, t.log_probabilities, t.text, t.reason) for t in [*first, *late]], read


@pytest.mark.parametrize(("head", "settings"), AHEAD, ids=str)
@pytest.mark.parametrize("inputs", [None, SOURCE], ids=["alone", "reading"])
def test_a_text_is_the_same_with_guesses(head, settings, inputs):
    net = made(head, settings | {"length": 90}, tuple(inputs or ()))
    plain, one_by_one = _guessed(net, 0, inputs)
    found, read = _guessed(net, 8, inputs)
    for (ids, chances, *rest), (own, others, *same) in zip(found, plain, strict=True):
        assert ids == own and rest == same and np.allclose(chances, others, atol=1e-4)
    assert sum(read) > 0 == sum(one_by_one) and len(read) < len(one_by_one)


def test_a_text_that_goes_round_is_read_a_few_times(monkeypatch):
    net = made("gpt", {"length": 90})
    net.writer.layers.positions.data.zero_()
    begin, calls = net.writer.column.begin, []
    monkeypatch.setitem(net.writer.column.state, "end", -2)  # nothing ends it
    for name in ("verify", "advance"):
        real = getattr(net, name)
        monkeypatch.setattr(net, name, lambda *given, real=real: (calls.append(1), real(*given))[1])
    (text,) = written(net, [Asked([begin], 80, GREEDY)])
    assert len(text.ids) == 80 and len(calls) < 40, len(calls)


@pytest.mark.parametrize("fault", ["believed", "not taken back", "a place too far"])
def test_control_guesses(fault, monkeypatch):
    if fault == "believed":  # every guess is taken for what the network says

        def believing(self, logits, guesses):
            chances = logits.log_softmax(-1)
            for t, g, own in zip(self.texts, guesses, chances):
                for i, p in zip(g, own):
                    self._write(t, i, float(p[i]))
            self.next = writing._chosen(logits[range(len(guesses)), [len(g) for g in guesses]], self.texts)
            return [len(g) for g in guesses]

        monkeypatch.setattr(Writer, "_checked", believing)
    elif fault == "not taken back":
        monkeypatch.setattr(Past, "rewind", lambda *_: None)
    else:  # the first token behind a wrong guess is told as if that had been right
        rewind = Past.rewind
        monkeypatch.setattr(
            Past, "rewind", lambda self, lengths: rewind(self, lengths.clamp(max=self.longest) + 0 * lengths + 1)
        )
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        test_a_text_is_the_same_with_guesses("llama", {}, None)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 8), st.integers(1, 59))
def test_a_guess_is_what_stood_behind_the_longest_ending(ids, most, cut):
    guesses = Guesses([])
    for part in (ids[:cut], ids[cut:]):  # read in two goes
        guesses.read.extend(part)
        found, length = guesses.next(most)
    pairs = [at for at in range(len(ids) - 1, 1, -1) if ids[at - 2 : at] == ids[-2:]][:PLACES]
    places = [(n, at) for n in range(8, 1, -1) for at in pairs if at >= n and ids[at - n : at] == ids[-n:]]
    places += [(1, at) for at in range(len(ids) - 1, 0, -1) if ids[at - 1] == ids[-1]]
    if not places:
        assert (found, length) == ([], 0)
        return
    n, at = places[0]
    circle = ids[at:]
    assert found == [circle[i % len(circle)] for i in range(most)] and length == max(m for m in LENGTHS if m <= n)


def test_as_many_are_guessed_as_pay():
    sure, unsure, none = ([1] * 8, 0.99), ([1] * 8, 0.02), ([], 0.0)
    assert worth([sure]) == 8 and worth([none]) == worth([unsure]) == worth([none] * 40) == 0
    assert 0 < worth([([1] * 8, 0.5)]) < 8
    assert worth([sure] * 8) * 8 + 8 <= 64 and worth([sure] * 65) == 0
    rates = Rates()
    assert worth([([1] * 8, rates.of(2))]) > 0
    for _ in range(30):
        rates.add(2, 0, 4)
    assert worth([([1] * 8, rates.of(2))]) == 0 and rates.of(3) == 0.5
    waits = 0
    while not worth([([1] * 8, rates.of(2))]):
        waits += 1
        rates.left(2)
    assert 10 < waits < 200
    for _ in range(30):
        rates.add(2, 4, 4)  # what is lately right is soon believed again
    assert 0.8 < rates.of(2) <= 1
    for _ in range(500):
        rates.left(2)
    assert rates.of(2) <= 1


def test_an_ending_that_fails_for_days_is_tried_again():
    rates = Rates()
    for _ in range(20_000):  # beside texts whose guesses pay, which are read whatever these are
        rates.add(2, 0, 4)
    for _ in range(300):
        rates.left(2)
    assert worth([([1] * 8, rates.of(2))]) > 0


def test_control_an_ending_that_is_never_tried_again(monkeypatch):
    monkeypatch.setattr(guessing, "RARELY", 0.0)
    with pytest.raises(AssertionError):
        test_an_ending_that_fails_for_days_is_tried_again()


class Wrong(Guesses):
    """What stands next in no text of a network that goes on with other ids."""

    def next(self, most):
        return ([self.read[0] + 1] * most, 2) if most > 0 else ([], 0)


def wasted(monkeypatch, count):
    """The share of time, as `worth` counts it, that goes to guesses of `count` texts which are all wrong."""
    net, read = made("gpt", {"length": 300}), []
    monkeypatch.setitem(net.writer.column.state, "end", -2)
    monkeypatch.setattr(writing, "Guesses", Wrong)
    monkeypatch.setattr(writing, "choose", lambda logits, *_: ([5] * len(logits), [0.0] * len(logits)))
    reading = Writer._read
    monkeypatch.setattr(Writer, "_read", lambda self, g: (read.append(max(len(x) for x, _ in g)), reading(self, g))[1])
    written(net, [Asked([7], 250) for _ in range(count)])
    return guessing.ROW * count * sum(read) / (len(read) * (1 + guessing.ROW * count))


@pytest.mark.parametrize("count", [1, 8, 32])
def test_wrong_guesses_are_soon_left_out(monkeypatch, count):
    assert 0 < wasted(monkeypatch, count) < 0.04


def test_control_each_text_makes_guesses_be_tried_again(monkeypatch):
    left = Rates.left
    monkeypatch.setattr(Rates, "left", lambda self, length: [left(self, length) for _ in range(32)])
    assert wasted(monkeypatch, 32) > 0.04


def chosen_rows(monkeypatch):
    """Tokens that were chosen, and those that there are: written ones, with the next of each time that a guess was wrong."""
    net, rows, read = made("llama", {"length": 90}), [], []
    real, reading = writing.choose, Writer._read
    monkeypatch.setattr(writing, "choose", lambda logits, *more: (rows.append(len(logits)), real(logits, *more))[1])
    monkeypatch.setattr(Writer, "_read", lambda self, g: (read.append(max(len(x) for x, _ in g)), reading(self, g))[1])
    texts = written(net, [Asked([net.writer.column.begin, 5, 6, 7, 5, 6, 7, 5], 60, s) for s in WAYS])
    assert any(read)
    return sum(rows), sum(len(t.ids) for t in texts)


def test_nothing_is_chosen_behind_a_wrong_guess(monkeypatch):
    chosen, there = chosen_rows(monkeypatch)
    assert chosen == there


def test_control_all_places_are_chosen(monkeypatch):
    real = Writer._checked

    def whole(self, logits, guesses):
        for each in logits.unbind(1):
            writing._chosen(each, self.texts)
        return real(self, logits, guesses)

    monkeypatch.setattr(Writer, "_checked", whole)
    with pytest.raises(AssertionError):
        test_nothing_is_chosen_behind_a_wrong_guess(monkeypatch)


def beside_one_that_fails(late=lambda writer, net: None):
    net = made("llama", {})
    writer, text = Writer(net), Asked([net.writer.column.begin], 8)
    writer.add([text])
    writer.step()
    late(writer, net)
    with pytest.raises(ValueError):  # a seed below 0 draws nothing
        writer.add([Asked([net.writer.column.begin], 8, Sampling(seed=-1))])
    while writer.texts:
        writer.step()
    assert [text.ids] == [t.ids for t in written(net, [Asked([net.writer.column.begin], 8)])]
    assert text.guesses is None, "what its guesses were made of is not kept"


def test_a_text_that_cannot_be_begun_costs_its_neighbours_nothing():
    beside_one_that_fails()


def test_control_a_text_that_was_half_begun():
    def half(writer, net):
        other = net.start(nothing(1))
        net.advance(other, torch.ones(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool))
        writer.state = writer.state.join(other)

    with pytest.raises((AssertionError, RuntimeError)):
        beside_one_that_fails(half)


def test_inputs_of_texts_that_join_stay_theirs():
    net = made("llama", {}, ("source",))
    sources = {"source": TEXTS[:3]}
    b = batch(net, TEXTS[:3], sources)
    alone = []
    for i in range(3):
        alone += written(net, [Asked([net.writer.column.begin], 5)], b.take(slice(i, i + 1)))
    texts = [Asked([net.writer.column.begin], 5) for _ in range(3)]
    writer = Writer(net)
    for i, t in enumerate(texts):
        writer.add([t], b.take(slice(i, i + 1)))
        writer.step()
    while writer.texts:
        writer.step()
    assert [t.ids for t in texts] == [t.ids for t in alone]


def test_log_probabilities_are_those_of_the_text():
    net = made("llama", {}, ("source",))
    b = batch(net, TEXTS[:3], {"source": TEXTS[:3]})
    found = write(net, b)
    ids = torch.where(found[..., 0] >= 0, found[..., 0], 0).long()
    mask = found[..., 0] >= 0
    b.targets["text"] = (ids, mask)
    o = net(b)
    each = net.score(o, {"text": torch.where(mask, ids, GONE)})["text"]
    assert torch.allclose(each.double(), (found[..., 1] * mask).sum(1), atol=1e-4)
    zeros = net.score(o, {"text": torch.where(mask, 0, GONE)})[
        "text"
    ]  # the first id is a token like others (of GPT-2, "!")
    assert torch.allclose(zeros, (o["text"].log_softmax(-1)[..., 0] * mask).sum(1), atol=1e-4) and (zeros < 0).all()
    assert columns()["text"].numbered(found[:1].numpy())[0].tolist() == torch.where(mask[0], ids[0], GONE).tolist()


def test_seeds_and_neighbours():
    net = made("llama", {})
    column = columns()["text"]
    ask = lambda seed: Asked(column.prompt("the").tolist(), 8, Sampling(temperature=1.2, seed=seed))  # noqa: E731
    first, again, other = ask(1), ask(1), ask(2)
    written(net, [first])
    written(net, [other, again])
    assert first.ids == again.ids != other.ids


def test_stop_words_and_streams():
    net = made("llama", {})
    column = columns()["text"]
    (whole,) = written(net, [Asked(column.prompt("a").tolist(), 10)])
    text = column.text(whole.ids)
    word = text[3:5]
    stopped = Asked(column.prompt("a").tolist(), 10, stop=(word,))
    pieces = list(streamed(net, stopped))
    assert "".join(pieces) == text[: text.find(word)] == stopped.text and stopped.reason == STOP
    free = Asked(column.prompt("a").tolist(), 10)
    assert "".join(streamed(net, free)) == text


def test_a_prompt_too_long_loses_its_beginning():
    net = made("llama", {})
    column = columns()["text"]
    asked = Asked(column.prompt("cat " * 40).tolist(), 4)
    written(net, [asked])
    assert asked.cut > 0 and len(asked.read) <= net.window and asked.prompt[0] == column.begin


@torch.no_grad()
def brute(net, b, most, penalty):
    """The best of all texts of at most `most` tokens, every one of them scored."""
    column = net.writer.column
    best = (-np.inf, None)
    for length in range(1, most + 1):
        for body in itertools.product(range(column.size), repeat=length - 1):
            if column.end in body:
                continue
            for last in range(column.size) if length == most else (column.end,):
                ids = torch.tensor([[*body, last]])
                chances = net(_with(b, ids))["text"].log_softmax(-1)
                score = float(chances.gather(2, ids[..., None]).sum())
                best = max(best, (score / length**penalty, tuple(ids[0].tolist())))
    return best


def _with(b, ids):
    return Batch(b.inputs, {"text": (ids, torch.ones_like(ids, dtype=torch.bool))}, 1)


def test_beams_find_the_likeliest_text(monkeypatch):
    column = Text("text", tokens="characters", least=1, ends=True, length=8, lower=False).fit(["ab", "ba"])
    monkeypatch.setattr("tests.writing.columns", lambda *_: {"text": column})
    net = network("llama", seed=3)
    b = nothing(1)
    for penalty in (0.0, 1.0):
        (found,) = beams(net, b, 3, 25, penalty)
        assert tuple(found[0]) == brute(net, b, 3, penalty)[1]
    one = beams(net, b, 4, 1)[0][0]
    assert one == greedy(net, [column.begin], 4)


@pytest.mark.parametrize("prompt", ["", "the cat", "a"])
def test_a_search_goes_on_from_a_prompt(prompt):
    """One beam writes what the likeliest token each time does; several find a text at least as likely, behind the same prompt."""
    net = network("llama", seed=1)
    ids = list(map(int, columns()["text"].prompt(prompt)))
    asked = lambda: [Asked(list(ids), 5)]  # noqa: E731
    (plain,), (one,), (wide,) = written(net, asked()), searched(net, asked(), 1), searched(net, asked(), 8)
    assert one.ids == plain.ids and (one.text or columns()["text"].text(one.ids)) == columns()["text"].text(plain.ids)
    mean = lambda t: sum(t.log_probabilities) / len(t.ids)  # noqa: E731
    assert mean(wide) >= mean(one) - 1e-9 and wide.reason in ("end", "length")


# -- choosing --------------------------------------------------------------------------------------------------------------
def frequencies(logits, **settings):
    logits = torch.tensor([logits])
    drawn = [choose(logits, [Sampling(seed=s, **settings)], [[]])[0][0] for s in range(1500)]
    return np.bincount(drawn, minlength=logits.shape[1]) / 1500


LOGITS = [2.0, 1.0, 0.0, -1.0, -3.0]
P = np.exp(LOGITS) / np.exp(LOGITS).sum()


def near(found, wanted):
    assert np.abs(found - wanted / wanted.sum()).max() < 0.05 and (found[wanted == 0] == 0).all()


def test_sampling_follows_the_probabilities():
    near(frequencies(LOGITS), P)
    near(frequencies(LOGITS, temperature=0.5), P**2)
    near(frequencies(LOGITS, top_k=2), P * [1, 1, 0, 0, 0])
    near(frequencies(LOGITS, top_p=0.7), P * [1, 1, 0, 0, 0])
    near(frequencies(LOGITS, top_p=0.01), P * [1, 0, 0, 0, 0])
    near(frequencies(LOGITS, min_p=0.1), P * [1, 1, 1, 0, 0])
    assert frequencies(LOGITS, temperature=0.0)[0] == 1


def test_repetition_costs():
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    assert choose(logits, [Sampling(temperature=0)], [[0]])[0] == [0]
    assert choose(logits, [Sampling(temperature=0, repetition_penalty=1.5)], [[0]])[0] == [1]


def test_settings_side_by_side_stay_their_own():
    logits = torch.tensor([LOGITS] * 3)
    each = [Sampling(top_k=1), Sampling(temperature=5.0, seed=4), Sampling(temperature=0)]
    ids, _ = choose(logits, each, [[], [], []])
    assert ids[0] == ids[2] == 0 and ids[1] == choose(logits[:1], each[1:2], [[]])[0][0]


def test_settings_that_cannot_be():
    with pytest.raises(RequestError) as e:
        checked(temperature=-1.0, topk=3, top_p=0.0)
    assert len(e.value.problems) == 3 and "top_k" in str(e.value)


# -- texts and ids ----------------------------------------------------------------------------------------------------------
@given(st.text(max_size=40))
def test_what_is_decoded_is_what_was_encoded(text):
    column = columns()["text"].whole()
    clean = column._clean(text)
    assert column.text(column.encode(text)) == clean


def test_control_words_are_plain_text():
    """Nothing that a user types becomes the end of the text."""
    column = columns()["text"]
    for word in ("⟨pad⟩", "⟨unk⟩", "<|endoftext|>", "</s>", "[SEP]"):
        ids = column.prompt(word)[1:]
        assert column.end not in ids and column.text(ids) == word


def test_packed_texts_lose_nothing():
    column = columns()["text"].whole()
    texts = column.encode_all(TEXTS)
    examples = Examples({"text": column}, {}, {"text": texts}, np.arange(10) + 100, 10)
    found = packed(examples, 7)
    assert np.array_equal(found.targets["text"].flat, texts.flat) and set(found.lengths()[:-1]) == {7}
    firsts = np.searchsorted(texts.offsets, found.targets["text"].offsets[:-1], side="right") - 1
    assert np.array_equal(found.rows, firsts + 100)
    with pytest.raises(Unsupported):
        packed(Examples({}, {"a": texts}, {"text": texts}, np.arange(10), 10), 7)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 12, 13, 30])
def test_windows_count_every_token_once(length):
    found = list(windows(np.arange(1, length + 1), 8))
    assert np.array_equal(np.concatenate([w[w > 0] for w in found]), np.arange(1, length + 1))
    for w in found[1:]:
        given = ~w[w < 0]
        assert len(given) == 4 and given[-1] + 1 == w[w > 0][0]


@torch.no_grad()
def test_likelihood_is_that_of_the_chain():
    net = made("llama", {})
    column = columns()["text"].whole()
    examples = Examples({"text": column}, {}, {"text": column.encode_all(TEXTS[:2])}, np.arange(2), 2)
    found = likelihood(net, "text", examples)
    for row, ids in zip(found, (examples.targets["text"][i] for i in range(2))):
        total, before = 0.0, [column.begin]
        for i in ids[:16].tolist():
            o = net.writer.logits(None, torch.tensor([before]), torch.ones(1, len(before), dtype=torch.bool))
            total -= float(o[0, -1].log_softmax(-1)[i])
            before.append(i)
        assert row[1] == len(ids)
        if len(ids) <= 16:
            assert abs(row[0] - total) < 1e-3


def test_examples_are_of_ragged_targets():
    found = Ragged.of([np.arange(3), np.arange(5)])
    assert Examples({}, {}, {"t": found}, np.arange(2), 2).lengths().tolist() == [3, 5]


# -- int8 ----------------------------------------------------------------------------------------------------------------------
def test_a_quantised_writer_is_saved_writes_and_makes_no_table_twice(tmp_path, monkeypatch):
    """Its answers are those of the weights that int8 stands for; the table that gives the logits is made once, not every token."""
    from luban.bundle import Bundle
    from luban.nn.quantized import QuantEmbedding, Quantized
    from tests import tiny

    small = Bundle.load(tiny.writer(tmp_path)).compress(quantize="int8")
    small.save(tmp_path / "small")
    small = Bundle.load(tmp_path / "small")
    assert isinstance(small.network.writer.embedding, QuantEmbedding)
    text = small.generate("good", tokens=8, temperature=0.0)
    prompt = small.columns["review"].prompt("good").tolist()
    assert text == small.columns["review"].text(greedy(small.network, prompt, 8))
    made = []
    real = Quantized.weight.fget
    monkeypatch.setattr(Quantized, "weight", property(lambda self: (made.append(self.dense is None), real(self))[1]))
    assert small.generate("good", tokens=8, temperature=0.0) == text
    assert made and not any(made)


def test_settings_of_sampling_have_one_set_of_names():
    """`Sampling`, the flags of `luban generate` and the keys of the server."""
    from dataclasses import fields

    from luban import cli
    from luban.command import Verb
    from luban.generation.sampling import Sampling
    from luban.stages.serve.openai import wanted

    names = {f.name for f in fields(Sampling)}
    flags = {f.name for f in (*Verb(cli.generate).flags, *cli.COMMON)}
    keys = set(wanted._schema(wanted._sampled)["properties"])
    assert names - flags == set() and names - keys == set()
    assert names - (keys - {"top_k"}) == {"top_k"}, "control: one that lacks is seen"
