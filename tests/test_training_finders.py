"""Settings found by trying: learning rate, batch, precision, compiling; frozen before the first update; nothing else changes."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import luban
from luban import machine
from luban.columns.examples import encode
from luban.data.prepare import data_of
from luban.errors import Unsupported
from luban.part import Part
from luban.training import choices, compiling, finders, precision
from luban.training.compiling import compiled
from luban.training.objectives import supervised
from luban.training.plan import Plan
from luban.training.precision import Scaler, able, choose, difference, products, refuse
from tests import tiny
from tests.test_contract_edits import batch_of, model_of

ASK = {"types": {"review": "text"}, "model": {"review": "bag"}, "size": "nano", "evaluate": False}
PLAN = Plan(epochs=1, batch=16, rate=0.01)


@pytest.fixture(scope="module")
def case():
    model = luban.train(tiny.rows(), "back", epochs=1, **ASK)
    framed = data_of(tiny.rows(300), model.columns).framed("test", Part("row"))
    return model.network, encode(model.columns, model.inputs, model.outputs, framed)


class Watched(nn.Module):
    """What a trial must leave alone: weights, buffers, gradients, random state, the process's setting of products."""

    @staticmethod
    def of(network):
        state = {n: t.clone() for n, t in network.state_dict().items()}
        grads = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
        return (
            state,
            grads,
            torch.get_rng_state(),
            np.random.get_state()[1].copy(),
            torch.get_float32_matmul_precision(),
        )

    @staticmethod
    def same(a, b):
        return (
            all(torch.equal(a[0][n], b[0][n]) for n in a[0])
            and all(x is y or torch.equal(x, y) for x, y in zip(a[1], b[1]))
            and torch.equal(a[2], b[2]) and np.array_equal(a[3], b[3]) and a[4] == b[4]
        )  # fmt: skip


def trials(network, examples):
    return {
        "rate": lambda: finders.find_rate(network, examples, PLAN, supervised),
        "batch": lambda: finders.find_batch(network, examples, PLAN, supervised),
        "compile": lambda: finders.find_compile(network, examples, PLAN, supervised, 10**5),
        "precision": lambda: choose(network, examples, 16, "cpu", supervised),
    }


@pytest.mark.parametrize("kind", ["rate", "batch", "compile", "precision"])
def test_a_trial_changes_nothing(kind, case, monkeypatch):
    network = copy.deepcopy(case[0]).train()
    network.register_buffer("seen", torch.zeros(3))
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    monkeypatch.setattr(finders, "LEAST", 0.0 if kind == "compile" else 600.0)
    monkeypatch.setattr(precision, "WORTH", 0.0)
    monkeypatch.setattr(precision, "able", lambda device, name: name in ("fp32", "bf16", "medium"))
    before = Watched.of(network)
    found = trials(network, case[1])[kind]()
    assert Watched.same(before, Watched.of(network))
    assert kind != "compile" or found.compiled > 0
    assert kind != "precision" or found.seconds.keys() == {"fp32", "bf16", "medium"}


def test_control_a_trial_on_the_network_itself_is_seen(case, monkeypatch):
    from contextlib import contextmanager

    @contextmanager
    def itself(network, device):
        yield network.train()

    network = copy.deepcopy(case[0])
    monkeypatch.setattr(finders, "aside", itself)
    before = Watched.of(network)
    finders.find_rate(network, case[1], PLAN, supervised)
    assert not Watched.same(before, Watched.of(network))


# -- the learning rate -------------------------------------------------------------------------------------------------
def test_the_range_test_ends_where_the_loss_diverges(case):
    found = finders.find_rate(*case, PLAN, supervised)
    again = finders.find_rate(*case, PLAN, supervised)
    assert found == again, "a trial is a function of the seed"
    lowest = 10 + int(np.argmin(found.losses[10:]))
    assert found.rate == pytest.approx(found.rates[lowest] / 10, rel=0.05)
    assert found.losses[-1] > found.losses[lowest] and 10 < len(found.rates) <= 100
    assert found.losses[lowest] < 0.9 * found.losses[0], "it learns on the way"


def test_a_network_with_a_steeper_loss_gets_a_lower_rate(case):
    """100 times the loss, by SGD: 100 times lower."""
    plan = Plan(epochs=1, batch=16, rate=1.0, optimizer={"sgd": {"momentum": 0.0}}, clip=0.0, weight_decay=0.0)
    steep = lambda n, b, r: {k: (100 * s, w) for k, (s, w) in supervised(n, b, r).items()}  # noqa: E731
    gentle, found = (finders.find_rate(*case, plan, o).rate for o in (supervised, steep))
    assert 10 < gentle / found < 1000


def test_a_loss_that_is_never_finite_gets_the_lowest_rate(case):
    broken = lambda n, b, r: {k: (s * float("nan"), w) for k, (s, w) in supervised(n, b, r).items()}  # noqa: E731
    assert finders.find_rate(*case, PLAN, broken) == finders.Curve(finders.LOWEST, [], [])


# -- the batch ---------------------------------------------------------------------------------------------------------
def speeds_of(monkeypatch, found):
    monkeypatch.setattr(finders, "_speed", lambda state, batches, *_: found[batches[0][0].size])


def test_a_slower_size_does_not_end_the_trial(case, monkeypatch):
    speeds_of(monkeypatch, {8: 100.0, 16: 60.0, 32: 200.0})
    found = finders.find_batch(*case, PLAN, supervised, tokens=0)
    assert found.batch == 32 and found.speeds == {8: 100.0, 16: 60.0, 32: 200.0} and found.stopped == "rows"


def test_the_smallest_that_is_nearly_as_fast(case, monkeypatch):
    speeds_of(monkeypatch, {8: 100.0, 16: 196.0, 32: 200.0})
    assert finders.find_batch(*case, PLAN, supervised, tokens=0).batch == 16


def test_memory_is_respected(case, monkeypatch):
    monkeypatch.setattr(finders, "_free", lambda device: 1)
    found = finders.find_batch(*case, PLAN, supervised)
    assert found.stopped == "memory" and list(found.speeds) == [8]

    def full(state, batches, objective):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(finders, "_first", full)
    found = finders.find_batch(*case, PLAN, supervised)
    assert found == finders.Speeds(PLAN.batch, {}, "memory")


def test_activations_grow_with_the_batch(case):
    from luban.training.state import State

    state = State(copy.deepcopy(case[0]), PLAN, 1)
    small, large = (
        finders._first(state, finders._some(case[1], Plan(epochs=1, batch=b, rate=0.1)), supervised) for b in (8, 32)
    )
    assert 0 < small < large


def test_other_errors_of_a_trial_are_not_taken_for_memory(case):
    def broken(network, batch, rng):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        finders.find_batch(*case, PLAN, broken)


# -- precision ---------------------------------------------------------------------------------------------------------
def test_products_are_as_they_were_afterwards():
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(KeyError), products("medium", "cpu"):
            assert torch.get_float32_matmul_precision() == "medium"
            raise KeyError
        with products("fp32", "cpu"):
            assert torch.get_float32_matmul_precision() == "highest", "fp32 is fp32 whatever was set"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def timed(monkeypatch, seconds, errors=()):
    monkeypatch.setattr(precision, "able", lambda device, name: name in seconds)
    monkeypatch.setattr(precision, "_once", lambda n, b, name, *_: seconds[name])
    monkeypatch.setattr(precision, "difference", lambda n, b, name, *_: dict(errors)[name])


@pytest.mark.parametrize(("seconds", "errors", "chosen"), [
    ({"fp32": 0.1, "bf16": 0.05}, {}, "bf16"),
    ({"fp32": 0.1, "bf16": 0.09}, {}, "fp32"),
    ({"fp32": 0.01, "bf16": 0.001}, {}, "fp32"),
    ({"fp32": 0.1, "bf16": 0.06, "medium": 0.05}, {"medium": 0.001}, "medium"),
    ({"fp32": 0.1, "bf16": 0.06, "medium": 0.05}, {"medium": 0.5}, "bf16"),
    ({"fp32": 0.1, "medium": 0.05}, {"medium": 0.5}, "fp32"),
    ({"fp32": 0.1, "tf32": 0.05, "fp16": 0.04}, {"tf32": 0.001}, "fp16"),
    ({"fp32": 0.1, "tf32": 0.05, "bf16": 0.06, "fp16": 0.04}, {"tf32": 0.001}, "tf32"),
], ids=str)  # fmt: skip
def test_faster_and_close_enough_is_chosen(seconds, errors, chosen, case, monkeypatch):
    timed(monkeypatch, seconds, errors)
    assert choose(*case, 8, "cpu", supervised).precision == chosen


def test_the_accuracy_test_measures_answers_and_gradients():
    model = model_of("transformer")
    batch = batch_of(model)
    model.network.train()
    assert difference(model.network, batch, "fp32", "cpu", supervised) == 0, "the same dropout, the same arithmetic"
    assert 1e-4 < difference(model.network, batch, "bf16", "cpu", supervised) < 0.2


def test_what_a_device_cannot_compute_is_refused(monkeypatch):
    flags = {"flags": ["avx2"]}
    monkeypatch.setattr(machine, "processor", lambda: flags)
    for name in ("bf16", "fp16", "tf32", "medium"):
        with pytest.raises(Unsupported, match=r"only imitate it.*Allowed: auto, fp32"):
            refuse(name, "cpu")
    with pytest.raises(Unsupported, match="bf16"):
        luban.train(tiny.rows(), "back", precision="bf16", epochs=1, **ASK)
    flags["flags"] = ["amx_bf16"]
    assert able("cpu", "bf16") and able("cpu", "medium") and not able("cpu", "fp16") and not able("mps", "bf16")
    refuse("bf16", "cpu")


@pytest.fixture(scope="module")
def digits():
    """What a network reaches on handwritten digits in a precision: (seeds, (validation loss, accuracy))."""
    from sklearn.datasets import load_digits

    found = load_digits()
    rows = [{"photo": p.astype(np.uint8) * 15, "digit": str(y)} for p, y in zip(found.images[:900], found.target)]
    ask = {
        "types": {"photo": "image"},
        "model": {"photo": {"mlp": {"layers": [32]}}},
        "size": "nano",
        "evaluate": False,
    }

    @cache
    def reached(kind):
        epochs = [
            luban.train(
                rows, "digit", precision=kind, epochs=6, rate=0.01, batch=32, seed=seed, augment=False, **ask
            ).metrics
            for seed in range(3)
        ]
        found = [[min(e["validation_loss"] for e in m), max(e["validation_accuracy"] for e in m)] for m in epochs]
        return np.array(found)

    return reached


@pytest.mark.parametrize("kind", ["bf16", "fp16", "medium"])
def test_metrics_do_not_suffer(kind, digits, monkeypatch):
    """In half precision (imitated where the processor lacks it) as good as in fp32, within what another seed changes."""
    if kind == "medium" and not precision.able("cpu", kind):
        pytest.skip("this processor has no bf16: there `medium` computes what fp32 does")
    for home in (machine, precision):
        monkeypatch.setattr(home, "able", lambda device, name="bf16": True)
    exact, half = digits("fp32"), digits(kind)
    assert exact[:, 1].mean() > 0.7 and not np.array_equal(exact, half), "it learns; it was another arithmetic"
    loss, accuracy = (half - exact).mean(0)
    assert loss < 0.05 and accuracy > -0.03


# -- fp16 --------------------------------------------------------------------------------------------------------------
def test_the_scale_falls_with_an_overflow_and_rises_after_many_good_updates():
    scaler = Scaler("cpu")
    scaler.scale.fill_(8.0)
    flat = torch.tensor([8.0, 16.0])
    assert not scaler.unscale(flat) and flat.tolist() == [1.0, 2.0]
    scaler.adjust()
    assert scaler.scale == 8 and scaler.good == 1
    assert scaler.unscale(torch.tensor([1.0, float("inf")]))
    scaler.adjust()
    assert scaler.scale == 4 and scaler.good == 0
    for _ in range(Scaler.INTERVAL):
        scaler.unscale(torch.ones(1))
        scaler.adjust()
    assert scaler.scale == 8
    other = Scaler("cpu")
    other.restore(scaler.tensors())
    assert other.scale == 8 and other.good == 0


def test_fp16_leaves_out_an_update_that_overflows_and_resumes_with_its_scale(tmp_path, monkeypatch):
    for home in (machine, precision):
        monkeypatch.setattr(home, "able", lambda device, name="bf16": True)
    monkeypatch.setattr(Scaler, "FIRST", 2.0**40)  # far too high: the first updates overflow
    path = tiny.csv(tmp_path / "rows.csv", 60)
    ask = {**ASK, "precision": "fp16", "epochs": 3, "checkpoint_seconds": 0, "out": tmp_path / "m"}
    whole = luban.train(str(path), "back", **ask)
    assert all(np.isfinite(e["loss"]) for e in whole.metrics)
    from luban.training import checkpoints

    tensors, _ = checkpoints.newest(tmp_path / "m" / "checkpoints")
    assert tensors["scaler"]["scale"] < 2.0**40
    again = luban.train(str(path), "back", resume=True, **ask)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.network.state_dict().values(), again.network.state_dict().values())
    )


# -- compiling ---------------------------------------------------------------------------------------------------------
def test_compiled_is_the_same_network():
    torch._dynamo.reset()
    model = model_of("mlp")
    batch, names = batch_of(model), list(model.network.state_dict())
    before = model.network(batch)["kind"]
    with compiled(model.network, "on", ragged=False, backend="eager"):
        assert list(model.network.state_dict()) == names
        assert torch.equal(model.network(batch)["kind"], before)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "control: it was compiled"
    assert model.network._compiled_call_impl is None and torch.equal(model.network(batch)["kind"], before)


def test_compiled_training_resumes_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.reset()
    rows = [{k: r[k] for k in ("price", "back")} for r in tiny.rows(60)]
    path = tmp_path / "rows.csv"
    path.write_text("price,back\n" + "".join(f"{r['price']},{r['back']}\n" for r in rows))
    ask = {"size": "nano", "evaluate": False, "compile": "on", "epochs": 2, "batch": 16, "checkpoint_seconds": 0}
    whole = luban.train(str(path), "back", out=tmp_path / "m", **ask)
    again = luban.train(str(path), "back", out=tmp_path / "m", resume=True, **ask)
    plain = luban.train(str(path), "back", **ask | {"compile": "off"})
    for other in (again, plain):
        assert all(
            torch.equal(a, b) for a, b in zip(whole.network.state_dict().values(), other.network.state_dict().values())
        )


def test_compiling_is_tried_only_where_it_could_pay(case, monkeypatch):
    def never(*a, **k):
        raise AssertionError

    monkeypatch.setattr(finders, "compiled", never)
    assert finders.find_compile(*case, PLAN, supervised, 100) == finders.Compiling()
    assert finders.find_compile(*case, PLAN, supervised, 2000).compile == "off"


@pytest.mark.parametrize(("seconds", "updates", "chosen"), [((1.0, 0.5), 10**4, "on"), ((1.0, 0.97), 10**4, "off"), ((1.0, 0.5), 1100, "off")])  # fmt: skip
def test_what_it_saves_must_outweigh_what_it_costs(seconds, updates, chosen, case, monkeypatch):
    times = iter(seconds)
    monkeypatch.setattr(finders, "_step_seconds", lambda *_: next(times))
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    clock = iter([0.0, 900.0])
    monkeypatch.setattr(finders.time, "monotonic", lambda: next(clock, 0.0))
    found = finders.find_compile(*case, PLAN, supervised, updates)
    assert (found.compile, found.cost) == (chosen, 900.0)


def test_a_machine_without_a_compiler_goes_on_without(case, monkeypatch):
    def no_compiler(*a, **k):
        raise RuntimeError("InvalidCxxCompiler")

    monkeypatch.setattr(finders, "LEAST", 0.0)
    monkeypatch.setattr(finders, "compiled", no_compiler)
    assert finders.find_compile(*case, PLAN, supervised, 10**5).compile == "off"


def test_compiling_that_this_machine_cannot_is_refused_before_work_starts(monkeypatch):
    def no_compiler(*a, **k):
        raise RuntimeError("InvalidCxxCompiler: none found\nmore")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(Unsupported, match=r"torch\.compile.*none found"):
        luban.train(tiny.rows(), "back", compile="on", epochs=1, **ASK)
    compiling.probe("off", "cpu")
    compiling.probe("auto", "cpu")


# -- frozen ------------------------------------------------------------------------------------------------------------
def test_what_was_found_is_frozen_before_the_first_update_and_shown(tmp_path, capsys):
    path = tiny.csv(tmp_path / "rows.csv", 300)
    bundle = luban.train(str(path), "back", rate="find", batch="find", epochs=1, out=tmp_path / "m", **ASK)
    said = capsys.readouterr().err
    chosen = bundle.recipe.stage("train").settings
    assert isinstance(chosen["rate"], float) and chosen["batch"] in (8, 16, 32)
    assert f"Learning rate {chosen['rate']:.2g}" in said and f"Batch {chosen['batch']}" in said
    assert (chosen["precision"], chosen["compile"]) == ("fp32", "off")
    begun = luban.Recipe.load(tmp_path / "m" / "checkpoints" / "recipe.yaml").stage("train").settings
    assert all(begun[k] == chosen[k] for k in ("rate", "batch", "precision", "compile"))
    page = luban.load(tmp_path / "m").reports["choices"]
    assert page.numbers["rate"]["rate"] == chosen["rate"] and "<svg" in page.to_html()


def test_a_run_that_is_taken_up_again_does_not_try_again(tmp_path, monkeypatch):
    path = tiny.csv(tmp_path / "rows.csv", 60)
    ask = {"rate": "find", "batch": "find", "epochs": 2, "checkpoint_seconds": 0, "out": tmp_path / "m", **ASK}
    whole = luban.train(str(path), "back", **ask)

    def never(*a, **k):
        raise AssertionError("tried again")

    monkeypatch.setattr(finders, "find_rate", never)
    monkeypatch.setattr(finders, "find_batch", never)
    again = luban.train(str(path), "back", resume=True, **ask)
    assert again.recipe == whole.recipe
    assert choices.settled(None, {"rate": "find"}) == {"rate": "find"}


def test_the_precision_that_was_chosen_is_told(case, monkeypatch, capsys):
    timed(monkeypatch, {"fp32": 0.1, "bf16": 0.05})
    made = choices.Choices(*case, supervised, PLAN)
    assert made.precision("auto") == "bf16" and "50 ms" in capsys.readouterr().err
    assert made.plan.precision == "bf16" and made.page() is None
    assert made.numbers["precision"] == {"precision": "bf16", "seconds": {"fp32": 0.1, "bf16": 0.05}, "errors": {}}
