"""A training step on an accelerator waits for nothing and mixes no devices: on the meta device, which has no numbers to read.

Every kind of network that Luban has makes an update there; each check is also run on a planted fault that it must find.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from luban.asking import Ask
from luban.nn.networks.adversarial import both
from luban.nn.tokens import Batch, brought
from luban.planning.subject import of_recipe
from luban.training import alternating
from luban.training.loop import Plan, State
from luban.training.objectives import mixed, supervised
from luban.training.steps import plain
from luban.training.sums import Sums
from tests import test_masked, test_preference, writing
from tests.far import Far

TEXT, CATEGORY = {"text": {"length": 12, "vocabulary": 40}}, {"y": {"category": {"most": 3}}}


def image(side=16):
    return {"photo": {"image": {"side": side}}}


def recipe(inputs, outputs=CATEGORY, fusion="concat", **model):
    train = {"batch": 4, "precision": "fp32"}
    plain = {"luban": 1, "inputs": inputs, "outputs": outputs, "fusion": fusion, "model": model, "size": "nano"}
    return plain | {"stages": [{"train": train}]}


TEXTS = ("cnn", "bag", "gru", "bilstm", "attention", "transformer")
SEEN = ("cnn", "lenet", "vgg", "resnet", "efficientnet", "vit")
KINDS = {
    "rows": recipe({"a": "number", "b": "category"}, CATEGORY | {"z": "number"}),
    **{f"text, {e}": recipe({"t": TEXT}, t=e) for e in TEXTS},
    **{f"image, {e}": recipe(image(32), photo=e) for e in SEEN},
    "clip": recipe({"v": {"video": {"side": 16}}}),
    "all of them": recipe({"a": "number", "b": "category", "t": TEXT} | image(), fusion="join"),
    "two texts": recipe({"t": TEXT, "u": TEXT}, fusion="pair"),
    "text to text": recipe({"t": TEXT}, {"u": TEXT}, u={"transformer": {"width": 16, "layers": 1}}),
    "text to text, lstm": recipe({"t": TEXT}, {"u": TEXT}, u="lstm"),
    "caption": recipe(image(), {"u": TEXT}, u={"gpt": {"width": 16, "layers": 1}}),
    "boxes, one stage": recipe(image(64), {"b": "boxes"}, b="fcos"),
    "boxes, two stages": recipe(image(64), {"b": "boxes"}, b="faster_rcnn"),
    "mask": recipe(image(), {"m": "mask"}),
    "drawn": recipe({"label": "category", "noise": "noise"}, image(16), photo={"dcgan": {"width": 8, "critic": 8}}),
    "tags": recipe({"t": TEXT}, {"g": "tags"}),
    "tags, chain": recipe({"t": TEXT}, {"g": "tags"}, g={"tags": {"crf": True}}),
    "span": recipe({"t": TEXT}, {"s": "span"}),
}
ASKED = {  # what is read of the device in a step, and where: how many positions or pairs there are, which only the batch knows
    "tags, chain": {"nn/chain.py": 1},
    "hidden words": {"nn/networks/masked.py": 1},
    "preferences": {"nn/networks/preferring.py": 4},
}


def made_up(kind):
    """A network of a kind, with nothing in its weights, and a batch of four examples of it."""
    what = of_recipe(KINDS[kind], Ask(), 100)
    with torch.device("meta"):
        network = what.build()
    return network, Batch.of(what.examples.arrays(np.arange(4)), "meta")


def over(batch):
    """A batch on the far device."""
    there = lambda pairs: {n: (x.to("meta"), mask.to("meta")) for n, (x, mask) in pairs.items()}  # noqa: E731
    return replace(batch, inputs=there(batch.inputs), targets=there(batch.targets))


def writes():
    net = writing.network("llama")
    return net, over(writing.batch(net, writing.TEXTS))


def hides():
    net, column = test_masked.masked()
    return net, over(test_masked.batch(column))


def prefers():
    net, column = test_preference.network()
    net.refer()
    net.reference[0].to("meta")
    return net, over(test_preference.batch(column, test_preference.PAIRS[:4]))


OTHERS = {"language": writes, "hidden words": hides, "preferences": prefers}


def update(network, batch, objective=supervised, step=plain, **settings):
    """What an accelerator would have seen of one update; `begin` has made the state's tensors before."""
    plan = replace(Plan(epochs=1, batch=4, rate=1e-3, device="meta"), **settings)
    state = State(network.to("meta"), plan, 10)
    state.train()
    if hasattr(step, "begin"):
        step.begin(state)
    with Far() as seen:
        numbers = step(state, batch, objective)
        Sums().add(numbers)
    assert seen.ops > 20
    return seen


def places(counts):
    found = {}
    for text, count in counts.items():
        place = text.split()[-1].split(":")[0]
        found[place] = found.get(place, 0) + count
    return found


@pytest.mark.parametrize("kind", [*(k for k in KINDS if k != "drawn"), *OTHERS])
def test_an_update_waits_for_nothing_and_mixes_no_devices(kind):
    seen = update(*(OTHERS[kind]() if kind in OTHERS else made_up(kind)))
    assert not seen.mixed and not seen.copies
    assert places(seen.waits) == ASKED.get(kind, {})


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop", "adagrad", "lion", "muon"])
def test_no_optimizer_waits(optimizer):
    seen = update(*made_up("text, transformer"), optimizer=optimizer, clip_value=0.5, clip_weights=1.0, ema=0.99)
    assert not (seen.mixed or seen.copies or seen.waits)


def test_neither_pieces_nor_the_scale_of_fp16_are_waited_for(monkeypatch):
    monkeypatch.setattr(State, "autocast", lambda self: torch.autocast("cpu", enabled=False))  # meta has none
    seen = update(*made_up("text, transformer"), accumulate=2, precision="fp16")
    assert not (seen.mixed or seen.copies or seen.waits)


@pytest.mark.parametrize("settings", [{"mixup": 0.2, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}])
def test_partners_are_drawn_here_and_sent_once(settings):
    what = of_recipe(KINDS["image, resnet"], Ask(), 100)
    network, batch = made_up("image, resnet")
    inputs = [what.examples.columns[n] for n in what.examples.inputs]
    seen = update(network, batch, mixed(network, inputs, **settings))
    assert not (seen.mixed or seen.waits) and sum(seen.copies.values()) == 1


def test_a_gpu_takes_batches_from_pinned_memory(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: asked.append("pinned") or t)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda t, to, non_blocking=False: asked.append((to.type, non_blocking)) or t
    )
    assert brought(np.ones(3), torch.device("cuda")).sum() == 3 and asked == ["pinned", ("cuda", True)]


def test_a_rival_is_not_waited_for():
    network, batch = made_up("drawn")
    with torch.device("meta"):
        network.refer()
        step = alternating.Alternating(network, network.columns)
    seen = update(network, batch, objective=both, step=step, clip=0.0)
    assert not (seen.mixed or seen.copies or seen.waits)


# -- planted faults ------------------------------------------------------------------------------------------------------


def looks(network, batch, rng):
    """An objective that looks at its loss, as many loops do after every step."""
    losses = supervised(network, batch, rng)
    sum(each.detach().sum() for each, _ in losses.values()).item()
    return losses


def chooses(network, batch, rng):
    """Takes the examples with an answer by their mask: how many they are has to be known."""
    return {n: (each[weight > 0], weight[weight > 0]) for n, (each, weight) in supervised(network, batch, rng).items()}


def brings(network, batch, rng):
    """Makes a number on the processor in each step."""
    return {
        n: (each * torch.tensor(2.0).to(each.device), w) for n, (each, w) in supervised(network, batch, rng).items()
    }


def mixes(network, batch, rng):
    """Forgets to say where a tensor is made."""
    return {n: (each @ torch.eye(len(each)), w) for n, (each, w) in supervised(network, batch, rng).items()}


@pytest.mark.parametrize(
    ("fault", "found"), [(looks, "waits"), (chooses, "waits"), (brings, "copies"), (mixes, "mixed")]
)
def test_a_fault_is_found(fault, found):
    seen = update(*made_up("rows"), fault)
    assert getattr(seen, found), fault


def test_a_copy_to_the_processor_is_found():
    x = torch.ones(3, device="meta")
    with Far() as seen:
        x.cpu()
        x[x > 0] = 1.0  # one number to all of them: nobody has to count
        x.masked_fill(x > 0, 0.0)
    assert sum(seen.waits.values()) == 1


# -- how many operations a step is ---------------------------------------------------------------------------------------


class Counted(TorchDispatchMode):
    """How many operations PyTorch runs, and how often a number is read."""

    def __init__(self):
        super().__init__()
        self.ops = self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops += 1
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


BESIDE = 12  # operations that an update may have beside the bare loop's


def real(kind):
    what = of_recipe(KINDS[kind], Ask(), 100)
    torch.manual_seed(0)
    return what.build(), Batch.of(what.examples.arrays(np.arange(4)))


def bare(network, batch):
    """The least that a loop of one's own does: loss, backward, one fused update."""
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)
    for _ in range(2):  # the first makes the optimiser's state
        with Counted() as seen:
            losses = network.loss(network(batch), batch)
            sum(each.sum() / weight.sum() for each, weight in losses.values()).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return seen


def ours(network, batch, objective=supervised):
    state = State(network, Plan(epochs=1, batch=4, rate=1e-3), 10)
    state.train()
    with Counted() as seen:
        plain(state, batch, objective)
    return seen


def within(mine, least, outputs=1):
    """A processor reads the norm, and of each output its loss and twice its weight: that costs less than to compute with them."""
    return mine.ops <= least.ops + BESIDE and mine.reads <= 1 + 3 * outputs


@pytest.mark.parametrize("kind", ["rows", "text, transformer", "image, resnet"])
def test_an_update_is_hardly_more_than_the_bare_one(kind):
    least, mine = bare(*real(kind)), ours(*real(kind))
    assert within(mine, least, 2 if kind == "rows" else 1), (mine.ops, least.ops, mine.reads, least.reads)


class Clipping(State):
    """The planted fault: gradients one by one, as a loop does that has not laid them side by side."""

    def update(self):
        for p in self.parameters:
            p.grad.mul_(min(1.0, 1.0 / (p.grad.norm().item() + 1e-6)))
        super().update()


def test_a_step_that_does_more_is_found(monkeypatch):
    least = bare(*real("text, transformer"))
    assert not within(ours(*real("text, transformer"), looks_often), least)
    monkeypatch.setitem(globals(), "State", Clipping)
    assert not within(ours(*real("text, transformer")), least)


def looks_often(network, batch, rng):
    losses = supervised(network, batch, rng)
    for each, _ in losses.values():
        each.detach().tolist(), [float(x) for x in each.detach()]
    return losses
