"""`luban plan`: what it counts against what is known exactly, and against real steps; each check with a fault that it must find."""

import gc
import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import luban
from luban import registry
from luban.asking import Ask
from luban.cli import main
from luban.columns.base import make
from luban.errors import RequestError
from luban.planning import hardware, layout
from luban.planning.calibrate import new_network_of
from luban.planning.layout import Measured, Setup, bytes_on, lay
from luban.planning.pages import changes, page
from luban.planning.plan import planning
from luban.planning.subject import of_recipe, of_shape
from luban.planning.trace import Trace, _counted, _places, fakes
from luban.recipe import Recipe
from luban.training.loop import State
from luban.training.objectives import supervised
from luban.training.recompute import recomputed
from tests import tiny

GPT2 = {"layers": 12, "width": 768, "heads": 12, "vocabulary": 50257, "length": 1024}
PLAIN = Recipe.of({"luban": 1, "stages": ["train"]})


def text(encoder, length=24, batch=16, **train):
    return {
        "luban": 1, "inputs": {"review": {"text": {"length": length, "vocabulary": 50}}},
        "outputs": {"label": {"category": {"most": 3}}}, "model": {"review": encoder},
        "stages": [{"train": {"batch": batch, "precision": "fp32", "tokens": 0} | train}],
    }  # fmt: skip


MIXED = {
    "luban": 1,
    "inputs": {"a": "number", "b": "category", "photo": {"image": {"side": 16}}, "t": {"text": {"length": 12}}},
    "outputs": {"y": "category", "z": "number"}, "fusion": "join", "stages": [{"train": {"batch": 8, "precision": "fp32"}}],
}  # fmt: skip
NETWORKS = {
    "mlp": {"luban": 1, "inputs": {"a": "number", "b": "category"}, "outputs": {"y": "number"}, "stages": ["train"]},
    "mixed": MIXED,
    "transformer": text({"transformer": {"width": 32, "layers": 3, "dropout": 0.0}}),
    "bag": text("bag"),
    "cnn": text("cnn"),
    "lstm": text({"lstm": {"hidden": 32}}),
    "gru": text({"gru": {"hidden": 32}}),
}


def subject(recipe):
    return of_recipe(recipe, Ask(), 100)


def real_step(what, mode):
    """One real step on real rows, under a mode; the network."""
    network = new_network_of(what).train()
    state = State(network, what.plan, 1)
    batch = torch_batch(what)
    with mode:
        losses = supervised(network, batch, None)
        total = sum(each.sum() / weight.sum().clamp(min=1e-12) for each, weight in losses.values())
        total.backward()
    del state
    return network


def torch_batch(what):
    import numpy as np

    from luban.nn.tokens import Batch

    return Batch.of(what.examples.arrays(np.arange(what.most)))


# -- exact ---------------------------------------------------------------------------------------------------------------------


def test_gpt2_has_the_parameters_that_it_has():
    """124,439,808: the published count of GPT-2 small, embedding and output tied."""
    assert Measured(of_shape(GPT2, PLAIN), True).standing.parameters == 124_439_808


def test_a_trillion_parameters_in_seconds_and_no_memory():
    from luban import machine

    before = machine.resident()
    sizes = {"layers": 128, "width": 25600, "heads": 160, "vocabulary": 50000, "length": 2048}
    measured = Measured(of_shape(sizes, PLAIN, 512), True)
    assert 1.00e12 < measured.standing.parameters < 1.02e12
    d, t = sizes["width"], sizes["length"]
    step = measured.step(4, "bf16", False)
    per_token = (step.forward + step.backward) / 4 / t
    matrices = measured.standing.parameters - t * d
    assert per_token == pytest.approx(6 * matrices + 12 * sizes["layers"] * d * t, rel=0.01)
    assert machine.resident() - before < 500e6


@pytest.mark.parametrize("name", NETWORKS)
def test_flops_are_those_that_torch_counts_in_a_real_step(name):
    what = subject(NETWORKS[name])
    step = Measured(what, False).step(what.most, "fp32", False)
    trace, counter = Trace(), FlopCounterMode(display=False)
    real_step(what, trace)
    assert step.forward + step.backward == trace.flops > 0
    if name not in ("lstm", "transformer", "mixed"):  # kernels that torch's own counter leaves out
        real_step(what, counter)
        assert counter.get_total_flops() == trace.flops


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("kind", [torch.nn.Conv2d, torch.nn.ConvTranspose2d])
def test_a_backward_pass_of_a_convolution_is_two_of_its_products(kind, groups):
    layer, x = kind(8, 16, 3, groups=groups), torch.randn(2, 8, 6, 6, requires_grad=True)
    forward, whole, frozen = Trace(), Trace(), Trace()
    with forward:
        y = layer(x)
    with whole:
        y.sum().backward()
    with frozen:
        layer(x.detach()).sum().backward()  # of its weights alone
    assert whole.flops == 2 * forward.flops > 0 and frozen.flops == 2 * forward.flops
    if groups == 1:
        counter = FlopCounterMode(display=False)
        with counter:
            layer(x).sum().backward()
        assert counter.get_total_flops() == 3 * forward.flops


def test_what_is_frozen_is_read_and_not_learned():
    what = subject(NETWORKS["cnn"])
    still = replace(what, plan=replace(what.plan, freeze=["review"]))
    whole, held = (Measured(w, False).step(what.most, "fp32", False) for w in (what, still))
    assert held.forward == whole.forward and held.backward < 0.5 * whole.backward and held.held < whole.held


def test_a_stack_measured_at_two_depths_is_the_whole_stack():
    sizes = {"layers": 9, "width": 32, "heads": 4, "vocabulary": 40, "length": 16}
    what = of_shape(sizes, PLAIN)
    for again in (False, True):
        short = Measured(what, True).step(4, "bf16", again)
        fake = fakes()
        with fake:
            network = what.build()
            if again:
                with recomputed(network):
                    whole = _counted(network, what.batch(4), "bf16", True)
            else:
                whole = _counted(network, what.batch(4), "bf16", True)
        for name in ("held", "peak", "casts", "forward", "backward", "crossing"):
            assert getattr(short, name) == pytest.approx(getattr(whole, name), rel=1e-3), name
        assert short.kernels == whole.kernels


# -- memory against real tensors -----------------------------------------------------------------------------------------------


def real_bytes(what):
    """(gradients and optimiser, most alive during a step beside them), of real tensors."""
    gc.collect()
    network = new_network_of(what).train()
    with Trace() as stays:
        state = State(network, what.plan, 1)
    with Trace(_places(network)) as trace:
        losses = supervised(network, torch_batch(what), None)
        total = sum(each.sum() / weight.sum().clamp(min=1e-12) for each, weight in losses.values())
        for p in network.parameters():
            p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
            p.grad = None
        total.backward()
    found = stays.live
    del state
    return found, trace.peak


def off(what, forget=(), real=None):
    """How far the plan is from real tensors, as a share; `forget` leaves a part of the plan out."""
    device = hardware.device("H100")
    parts = bytes_on(Measured(replace(what, validation=0), False), Setup(device, 1, "one", "fp32"))
    stays, peak = real_bytes(real or what)
    planned = sum(v for k, v in parts.items() if k in ("gradients", "optimizer", "activations") and k not in forget)
    return abs(planned / (stays + peak) - 1)


@pytest.mark.parametrize(
    "name", [n for n in NETWORKS if n != "lstm"]
)  # whose workspace no shape tells: benchmarks/plan.py
def test_planned_memory_is_that_of_real_tensors(name):
    assert off(subject(NETWORKS[name])) < 0.15


MASKED = {
    "luban": 1, "inputs": {"t": {"text": {"length": 64, "vocabulary": 50}}}, "fusion": {"masked": {"share": 0.3}},
    "model": {"t": {"transformer": {"width": 32, "layers": 2, "dropout": 0.0}}},
    "stages": [{"train": {"batch": 32, "precision": "fp32"}}],
}  # fmt: skip


def test_of_hidden_tokens_as_many_are_planned_as_are_expected():
    """Which they are is drawn, so that shapes alone do not tell how many."""
    what = subject(MASKED)
    assert off(what) < 0.15
    step, trace = Measured(what, False).step(what.most, "fp32", False), Trace()
    real_step(what, trace)
    assert step.forward + step.backward == pytest.approx(trace.flops, rel=0.005)
    assert subject(MASKED | {"fusion": {"masked": {"whole_words": True}}}).rows == what.rows
    few = replace(what, build=subject(MASKED | {"fusion": {"masked": {"share": 0.05}}}).build)
    assert Measured(few, False).step(what.most, "fp32", False).forward < 0.99 * step.forward


def test_a_packed_text_is_as_many_examples_as_it_has_stretches(tmp_path):
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"t": f"{i} the cat sat on the mat " * 40}) + "\n" for i in range(40))
    )
    plain = MASKED | {"data": {"rows": str(tmp_path / "t.jsonl")}, "frame": {"pack": {"length": 16}}}
    what = of_recipe(plain, Ask(), None)
    tokens = sum(len(e.flat) for e in what.examples.inputs.values())
    assert what.rows == pytest.approx(tokens / 16, rel=0.1) and what.rows > 10 * 40


EVEN = text({"transformer": {"width": 64, "layers": 3, "dropout": 0.0}}, length=16, batch=2)  # no part is negligible


@pytest.mark.parametrize("forgotten", ["optimizer", "activations", "gradients"])
def test_control_a_part_that_is_forgotten_is_seen(forgotten):
    assert off(subject(EVEN)) < 0.15 < off(subject(EVEN), {forgotten})


def test_control_an_optimiser_without_its_second_moment_is_seen():
    what = subject(EVEN)
    first_only = replace(what, plan=replace(what.plan, optimizer="sgd"))
    assert off(first_only) < 0.15 < off(first_only, real=what)


def test_recompute_trains_the_same_and_holds_less():
    recipe = text({"transformer": {"width": 32, "layers": 4, "dropout": 0.1}}, steps=3)
    one, two = (luban.train(tiny.rows(), "back", types={"review": "text"}, model={"review": {"transformer": {"layers": 3}}},
                            size="nano", epochs=2, recompute=again, evaluate=False) for again in (False, True))  # fmt: skip
    for a, b in zip(one.network.state_dict().values(), two.network.state_dict().values()):
        assert torch.equal(a, b)
    assert not [m for m in two.network.modules() if "forward" in vars(m)]
    measured = Measured(subject(recipe), False)
    kept, again = measured.step(16, "fp32", False), measured.step(16, "fp32", True)
    assert again.held < 0.5 * kept.held and again.forward + again.backward > kept.forward + kept.backward


# -- devices -------------------------------------------------------------------------------------------------------------------


def test_every_device_names_its_source_and_the_docs_show_it():
    from pathlib import Path

    written = hardware._written()["devices"]
    page = (Path(__file__).parent.parent / "docs" / "plan.md").read_text(encoding="utf-8")
    for name, plain in written.items():
        assert plain["source"] and plain["read"]
        row = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
        for value in (
            plain["memory_gb"],
            plain["bandwidth_gb_s"],
            plain["watts"],
            plain["tflops"]["fp32"],
            plain["link_gb_s"],
        ):
            assert f"{value:,}" in row, (name, value)
        assert plain["source"] in page


def test_names_of_gpus_as_people_write_them():
    assert [hardware.gpus(t)[0].name for t in ("64xH100", "a100 80GB", "NVIDIA L4", "2 x rtx_4090", "h100-pcie")] == [
        "H100", "A100-80", "L4", "RTX-4090", "H100-PCIe",
    ]  # fmt: skip
    assert hardware.gpus("64xH100")[1] == 64


def laid(strategy, devices=16, **settings):
    what = of_shape({**GPT2, "length": 256}, PLAIN, devices)
    device = hardware.device("H100")
    return lay(Measured(what, True), Setup(device, devices, strategy, "fp32", **settings))


def test_what_is_sent_is_what_the_papers_say():
    """ddp 2 (n - 1) / n of the gradients, fsdp half as much again (Rajbhandari et al. 2020); over the slower link."""
    ddp, fsdp = laid("ddp"), laid("fsdp")
    weights = 124_439_808 - 768 * 768  # fewer positions
    assert ddp.sent == pytest.approx(2 * 15 / 16 * 4 * weights, rel=0.01)
    assert fsdp.sent == pytest.approx(1.5 * ddp.sent, rel=0.01)
    assert "InfiniBand" in ddp.link and laid("ddp", 8).link == "NVLink 4"
    assert fsdp.memory["optimizer"] == pytest.approx(ddp.memory["optimizer"] / 16)
    assert fsdp.total < ddp.total


def test_the_nearest_plan_fits_and_changes_as_little_as_will_do():
    what = of_shape({**GPT2, "layers": 48, "width": 1600, "heads": 25}, PLAIN, 8)
    planned = planning(what, hardware.device("A100-40"), 8)
    assert not planned.asked.fits or planned.nearest is None
    best = planned.best
    assert best.fits and not best.idle(what.update)
    assert best.setup.devices >= 8


def test_what_cannot_fit_says_so():
    sizes = {"layers": 128, "width": 25600, "heads": 160, "vocabulary": 50000, "length": 2048}
    recipe = Recipe.of({"luban": 1, "stages": [{"train": {"batch": 2}}]})
    planned = planning(of_shape(sizes, recipe, 2), hardware.device("T4"), 2)
    assert planned.nearest is None and not planned.asked.fits


# -- what training refuses -----------------------------------------------------------------------------------------------------


def near(devices, batch=64, shape=GPT2, device="T4", **settings):
    recipe = Recipe.of({"luban": 1, "stages": [{"train": {"batch": batch}}]})
    return planning(of_shape(shape, recipe, devices), hardware.device(device), devices, fixed=True, **settings)


def test_no_plan_cuts_weights_and_batches():
    assert near(4, strategy="fsdp").nearest.setup.accumulate == 1


def test_control_a_planner_that_does_not_ask_what_training_refuses_is_seen(monkeypatch):
    monkeypatch.setattr(layout, "clashes", lambda *_: ())
    assert near(4, strategy="fsdp").nearest.setup.accumulate > 1


def test_a_strategy_that_cannot_be_is_marked_and_another_one_named(tmp_path, capsys):
    train = {"batch": 16, "ema": 0.99, "accumulate": 2, "optimizer": "muon"}
    recipe = NETWORKS["mlp"] | {"stages": [{"train": train}], "scale": {"strategy": "fsdp", "ranks": 4}}
    for asked, told in ((recipe, "Problem"), (recipe | {"scale": {}}, "Caution")):
        (tmp_path / "r.yaml").write_text(json.dumps(asked))
        code = main(["plan", str(tmp_path / "r.yaml"), "--gpus", "4xH100", "--rows", "1000"])
        said = " ".join(capsys.readouterr().out.split())
        assert code == (1 if told == "Problem" else 0)
        assert f"{told}: strategy: fsdp does not go together with ema: 0.99, accumulate: 2" in said
        assert f"{told}: train.optimizer: muon" in said and "cannot be" in said
        assert ("scale.strategy: ddp" in said) == (told == "Problem")
    numbers = luban.plan(recipe, gpus="4xH100", rows=1000).numbers
    assert numbers["strategies"]["fsdp"]["refused"] and not numbers["strategies"]["ddp"]["refused"]
    assert numbers["plan"]["strategy"] == "ddp" and numbers["changes"]["scale.strategy"] == "ddp"


SHARDED = {**GPT2, "layers": 48, "width": 2560, "heads": 32, "length": 256}  # its optimiser alone fills a device


def test_a_plan_that_only_sharding_makes_fit_names_it(capsys):
    """A recipe that names no strategy is trained with ddp: that this has to be changed is said, and it does not fit as it stands."""
    words = [
        "--shape",
        ",".join(f"{k}={v}" for k, v in SHARDED.items()),
        "--gpus",
        "8xA100-40",
        "--set",
        "train.batch=8",
    ]
    assert main(["plan", *words]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "ddp needs" in said and "scale.strategy: fsdp" in said
    numbers = luban.plan(shape=SHARDED, gpus="8xA100-40", set=["train.batch=8"]).numbers
    assert numbers["changes"] == {"scale.ranks": 8, "scale.strategy": "fsdp"} and not numbers["fits"]
    assert numbers["plan"]["strategy"] == "fsdp"
    assert main(["plan", *words, "--strategy", "fsdp"]) == 0
    assert "scale.strategy" not in capsys.readouterr().out, "who has named it need not be told"


def test_a_faster_strategy_is_named_too():
    """Where both fit, minutes are told of the faster one: then it has to be set."""
    planned = planning(of_shape({**GPT2, "length": 64}, Recipe.of({"luban": 1, "stages": [{"train": {"batch": 8}}]}), 8),
                       hardware.device("H100"), 8)  # fmt: skip
    assert planned.stands.fits and not planned.named
    quick = replace(planned, asked=planned.laid["fsdp"])
    assert changes(quick) == {"scale.ranks": 8, "scale.strategy": "fsdp"} and page(quick).numbers["fits"]
    assert changes(replace(planned, asked=planned.laid["ddp"])) == {}


def test_devices_that_would_have_nothing_to_do_are_left_out():
    numbers = luban.plan(NETWORKS["mlp"] | {"stages": [{"train": {"batch": 15}}]}, gpus="64xH100", rows=1000).numbers
    assert not numbers["fits"] and numbers["changes"] == {"scale.ranks": 15, "scale.strategy": "ddp"}


def test_the_batch_grows_where_fewer_devices_would_not_hold_the_network():
    shape = {**GPT2, "layers": 80, "width": 4096, "heads": 32, "length": 64}
    planned = near(16, 4, shape, "A100-40", strategy="fsdp")
    assert planned.asked.idle(4) == 12 and planned.nearest.setup.devices == 16
    assert changes(planned) == {"train.batch": 16} and planned.best.able(16)
    assert planned.aim.steps == -(-planned.subject.steps // 4)


def test_what_ranks_cannot_train_is_planned_for_one_device():
    recipe = {
        "luban": 1, "inputs": {"a": {"text": {"length": 8}}, "b": {"text": {"length": 8}}}, "fusion": "match", "size": "nano",
        "stages": [{"train": {"batch": 32}}],
    }  # fmt: skip
    planned = planning(of_recipe(recipe, Ask(), 100), hardware.device("H100"), 4)
    assert [p.id for p in planned.asked.refused] == ["scale.compares"]
    best = planned.nearest.setup
    assert (best.devices, best.accumulate) == (1, 1) and changes(planned)["scale.ranks"] == 1
    (pieces,) = layout.refusals(planned.measured, replace(best, accumulate=2))
    assert pieces.id == "train.not_separable"


# -- the verb ------------------------------------------------------------------------------------------------------------------


def test_a_recipe_is_planned_without_its_data(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(json.dumps(MIXED | {"data": {"rows": "nowhere.csv"}}))
    assert main(["plan", str(tmp_path / "r.yaml"), "--gpus", "4xL4", "--rows", "5000", "--price", "2", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["run"]["rows"] == 4000 and numbers["device"] == {"name": "L4", "title": "NVIDIA L4", "count": 4}
    assert set(numbers["strategies"]) == {"ddp", "fsdp", "tensor"}
    plan = numbers["plan"]
    assert plan["usd"] == pytest.approx(2 * plan["device_hours"]) and plan["estimated"] is True
    assert plan["kwh"] == pytest.approx(0.072 * plan["device_hours"] * 1.58)


def test_data_are_planned_on_this_machine_and_the_run_takes_about_that(tmp_path):
    report = luban.plan(tiny.csv(tmp_path / "rows.csv", 200), "back", types={"review": "text"}, set=["size=nano"])
    numbers = report.numbers
    bundle = luban.train(tmp_path / "rows.csv", "back", types={"review": "text"}, size="nano", evaluate=False)
    entry = next(h for h in bundle.history if h["stage"] == "train")
    assert numbers["parameters"] == entry["parameters"] and numbers["fits"]
    assert numbers["run"]["epochs"] == pytest.approx(entry["settings"]["epochs"], rel=0.2)
    assert numbers["plan"]["timed"] and 0 < numbers["plan"]["cpu_seconds"] < 60
    bundle.save(tmp_path / "model")
    saved = luban.plan(tmp_path / "model").numbers
    assert saved["parameters"] == entry["parameters"] and saved["device"]["count"] == 1
    assert set(luban.plan(str(tmp_path / "model"), gpus="2xH100").numbers["strategies"]) == {"ddp", "fsdp", "tensor"}


def test_every_column_can_be_supposed():
    for name in registry.names("columns"):
        column = make("x", name, {"vocabulary": 9} if name == "text" else {})
        try:
            supposed = column.supposed()
        except RequestError as e:
            assert e.id == "column.no_guess"
        else:
            assert supposed.size >= 1


WRONG = [
    ({"shape": GPT2, "gpus": "64xH10"}, ["H10", "H100"]),
    ({"shape": GPT2, "gpus": "0xH100"}, ["0xH100", "1"]),
    ({"shape": GPT2, "gpus": "8xH100+8xA100"}, ["one kind"]),
    ({"shape": GPT2, "gpus": "64"}, ["64xH100"]),
    ({"shape": GPT2, "gpus": "1xH100", "strategy": "fsdp"}, ["fsdp", "two"]),
    ({"shape": GPT2, "gpus": "8xH100", "strategy": "fdsp"}, ["fdsp", "fsdp"]),
    ({"shape": GPT2, "gpus": "8xH100", "cpus": 2}, ["--cpus"]),
    ({"shape": GPT2, "gpus": "8xH100", "price": -1.0, "achieved": 1.5}, ["--price", "--achieved"]),
    ({}, ["recipe"]),
    ({"shape": "layers=2,widht=64"}, ["widht", "width", "heads"]),
    ({"shape": {**GPT2, "heads": 7}}, ["7", "768"]),
    ({"shape": {**GPT2, "layers": 1.5}}, ["layers", "1.5"]),
    ({"shape": "layers=2,layers=3,width=64,heads=4,vocabulary=9,length=8"}, ["'layers'", "twice"]),
    ({"shape": {**GPT2, "layers": 999999, "width": 999936}}, ["trillion", "100"]),
    ({"shape": {**GPT2, "layers": 5000}}, ["5,000 layers", "1,024"]),
    ({"shape": GPT2, "gpus": "2xT4", "set": ["train.precision=bf16"]}, ["T4", "bf16"]),
    ({"source": {"luban": 1, "data": {"rows": "nowhere.csv"}}}, ["nowhere.csv"]),
]  # fmt: skip


@pytest.mark.parametrize("asked, expected", WRONG, ids=[str(w[1]) for w in WRONG])
def test_a_wrong_request_is_one_sentence_each(asked, expected):
    with pytest.raises(RequestError) as caught:
        luban.plan(**asked)
    assert not [part for part in expected if part not in str(caught.value)], str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
