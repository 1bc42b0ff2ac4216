"""compress: every way to a smaller model, what is measured, and what is never claimed."""

import numpy as np
import pytest
import torch

from luban.bundle import Bundle
from luban.errors import BundleError, DataError, RequestError, Unsupported
from luban.evaluation import paired
from luban.evaluation.attribution import attributions, likeness
from luban.evaluation.latency import Timing, speedup
from luban.evaluation.metrics import classification, regression
from luban.nn.edits import replay
from luban.part import Part
from luban.stages.compress import methods
from luban.stages.compress.compare import sample
from luban.stages.train import train
from tests import compact

TABLE = compact.rows(300)


@pytest.fixture(scope="module")
def trained():
    model = compact.tabular(TABLE, size="small")
    return train(model, compact.data(TABLE, model.recipe), epochs=8, batch=32, rate=3e-3)


@pytest.fixture(scope="module")
def data(trained):
    return compact.data(TABLE, trained.recipe)


def quick(model, data, **settings):
    return model.compress(data, resamples=50, explain=8, **settings)


WAYS = {
    "int8": {"quantize": "int8"},
    "channels": {"prune": 0.5, "healing": 1},
    "weights": {"prune": 0.5, "kind": "magnitude", "healing": 1},
    "student": {"distill": "nano", "epochs": 2},
    "all": {"distill": "nano", "epochs": 1, "prune": 0.25, "healing": 1, "quantize": "int8"},
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_smaller_saved_and_measured(way, trained, data, tmp_path):
    original = {k: v.clone() for k, v in trained.network.state_dict().items()}
    small = quick(trained, data, **WAYS[way])
    numbers = small.reports["compress"].numbers
    assert small.reports["compress"].kind == "compress" and numbers["rows"] == 60
    before, after = numbers["before"], numbers["after"]
    if way == "weights":
        assert after["bytes"] == before["bytes"] and after["packed_bytes"] < 0.75 * before["packed_bytes"]
    else:
        assert after["bytes"] < 0.6 * before["bytes"]
    for metrics in numbers["outputs"].values():
        for name, m in metrics.items():
            assert m["difference"].value == pytest.approx(m["after"].value - m["before"].value, abs=1e-9), name
    assert set(numbers["agreement"]) == {"buys", "spent"}
    assert all(-1 <= m["cosine"].value <= 1 for m in (numbers["explanations"][n] for n in ("buys", "spent")))
    small.save(tmp_path / "small")
    again = Bundle.load(tmp_path / "small")
    records = TABLE.slice(0, 20).to_pylist()
    assert again.predict(records) == small.predict(records)
    assert again.reports["compress"].numbers["before"]["bytes"] == before["bytes"]
    assert again.history[-1]["stage"] == "compress" and len(trained.history) == 1
    left = trained.network.state_dict()
    assert original.keys() == left.keys() and all(torch.equal(original[k], left[k]) for k in original)
    assert all(p.requires_grad for p in trained.network.parameters()) and trained.edits == []


def test_the_engine_multiplies_once_and_answers_bit_for_bit_like_the_network(trained, data):
    small = quick(trained, data)
    batch = sample(small, data)
    from luban.columns.examples import encode

    framed = data.framed(data.held_out()[1][:8], small.recipe.frame)
    arrays = encode(small.columns, small.inputs, (), framed).arrays(np.arange(8))
    with torch.no_grad():
        own = small.network(batch)
    assert all(np.array_equal(own[n].numpy(), o) for n, o in small.engine.run(arrays).items())
    assert small.engine.network is not small.network and trained.engine.network is trained.network


def test_int8_by_default_and_close_to_the_original(trained, data):
    small = quick(trained, data)
    assert [e["edit"] for e in small.edits] == ["quantize_linear"]
    assert small.reports["compress"].numbers["agreement"]["buys"]["same"].value > 0.95
    assert small.reports["compress"].numbers["explanations"]["buys"]["cosine"].value > 0.99


def test_healing_keeps_pruned_weights_at_zero(trained, data):
    small = quick(trained, data, prune=0.6, kind="magnitude", healing=2)
    layers = small.edits[0]["layers"]
    shares = [(small.network.get_submodule(n).weight == 0).float().mean() for n in layers]
    assert min(shares) >= 0.59
    assert not torch.equal(
        small.network.get_submodule(layers[0]).weight,
        methods.without_weights(trained, 0.6).network.get_submodule(layers[0]).weight,
    )


def test_control_plain_training_would_bring_the_zeros_back(trained, data):
    from luban.columns.examples import encode
    from luban.training.loop import fit
    from luban.training.objectives import supervised

    pruned = methods.without_weights(trained, 0.6)
    examples = encode(trained.columns, trained.inputs, trained.outputs, data.framed("train", trained.recipe.frame))
    network = pruned.copy_network()
    fit(network, examples, None, plan=methods.plan_of(trained.recipe, len(examples), 1), objective=supervised)
    assert (network.get_submodule(pruned.edits[0]["layers"][0]).weight == 0).float().mean() < 0.4


def test_the_least_important_channels_go_first(trained, data):
    """A channel that nobody reads goes before all others, whatever its own size."""
    from luban.nn import channels

    model = methods.edited(trained, {"edit": "prune_magnitude", "layers": [], "share": 0})
    found = next(g for g in channels.groups(model.network, sample(model, data)) if "fusion.layers.0" in g.layers)
    with torch.no_grad():
        model.network.get_submodule("fusion.layers.0").weight[5] *= 100
        for name, columns in found.columns.items():
            model.network.get_submodule(name).weight[:, columns[5]] = 0
    pruned = methods.without_channels(model, 0.01, sample(model, data))
    assert 5 not in pruned.edits[1]["keep"] and len(pruned.edits[1]["keep"]) == 127


def test_zeros_are_never_called_faster(trained, data):
    small = quick(trained, data, prune=0.9, kind="magnitude", healing=0)
    numbers = small.reports["compress"].numbers
    assert not any(s["faster"] for s in numbers["speedup"].values())
    assert "Faster" not in small.reports["compress"].to_markdown()


@pytest.mark.parametrize("ratio, called", [(1.0, False), (1.04, False), (1.2, True), (0.5, False)])
def test_faster_is_said_from_a_measured_ratio_of_1_05_on(ratio, called):
    noise = np.random.default_rng(0).normal(1, 0.01, 60)
    before, after = Timing(np.full(60, 0.01) * ratio * noise, 1), Timing(np.full(60, 0.01), 1)
    assert speedup(before, after)["faster"] is called


def test_control_a_noisy_clock_is_not_believed():
    rng = np.random.default_rng(1)
    before, after = Timing(rng.uniform(0.5, 1.9, 60), 1), Timing(rng.uniform(0.4, 1.5, 60), 1)
    found = speedup(before, after)
    assert found["value"] > 1.05 and not found["faster"]


def test_without_rows_only_sizes_are_known(trained):
    small = trained.compress(None)
    numbers = small.reports["compress"].numbers
    assert numbers["rows"] == 0 and numbers["outputs"] == {} and numbers["after"]["bytes"] < numbers["before"]["bytes"]
    assert "no rows" in small.reports["compress"].to_markdown()


@pytest.mark.parametrize("settings", [{"distill": "nano"}, {"prune": 0.5}])
def test_rows_are_asked_for_where_they_are_needed(trained, settings):
    with pytest.raises(DataError):
        trained.compress(None, **settings)


def test_a_file_without_answers_prunes_and_says_it_did_not_heal(trained):
    plain = compact.data(TABLE.drop_columns(["buys", "spent"]), split=False)
    small = trained.compress(plain, prune=0.5, resamples=20, explain=4)
    assert "no training rows" in " ".join(small.reports["compress"].numbers["methods"])


def test_a_file_is_split_where_something_is_to_be_learned_from_it(trained):
    file = compact.data(TABLE, split=False)
    learned = trained.compress(file, distill="nano", epochs=2, resamples=20, explain=4).reports["compress"].numbers
    assert learned["rows"] == round(0.1 * len(TABLE)), "judged on rows that it did not learn from"
    measured = lambda d: trained.compress(d, quantize="int8", resamples=20, explain=4).reports["compress"].numbers  # noqa: E731
    assert measured(file)["rows"] == learned["rows"], "trained on before: measured on the rows that were held out"
    other = compact.data(compact.rows(50, seed=99), split=False)
    assert measured(other)["rows"] == 50, "control: rows that nothing is or was learned from are measured whole"


def test_bad_targets_of_distillation_are_refused(trained, data, tmp_path):
    with pytest.raises(RequestError, match="nano"):
        quick(trained, data, distill="nanno")
    other = tmp_path / "other.yaml"
    other.write_text("luban: 1\ninputs: {zzz: number}\noutputs: {buys: category}\n")
    with pytest.raises(RequestError, match="other columns"):
        quick(trained, data, distill=str(other))


def test_distilling_into_a_recipe_takes_its_model(trained, data, tmp_path):
    path = tmp_path / "thin.yaml"
    path.write_text("luban: 1\nsize: nano\nfusion: {concat: {layers: [6]}}\nstages: [train: {epochs: 1}]\n")
    small = quick(trained, data, distill=str(path))
    assert small.recipe.fusion.settings["layers"] == [6] and small.recipe.size == "nano"
    assert small.recipe.inputs == trained.recipe.inputs
    assert small.network.get_submodule("fusion.layers.0").weight.shape[0] == 6


def test_a_student_learns_as_its_recipe_says(trained, data, tmp_path, monkeypatch):
    seen = []
    fit = methods.fit
    monkeypatch.setattr(
        methods, "fit", lambda *parts, plan, **rest: seen.append(plan) or fit(*parts, plan=plan, **rest)
    )
    path = tmp_path / "calm.yaml"
    asked = "{epochs: 1, ema: 0.9, warmup: 0.5, schedule: constant, keep: last, precision: fp32}"
    path.write_text(f"luban: 1\nsize: nano\nstages: [train: {asked}]\n")
    quick(trained, data, distill=str(path))
    (plan,) = seen
    assert (plan.ema, plan.warmup, plan.keep, plan.precision) == (0.9, 0.5, "last", "fp32")
    assert "constant" in str(plan.schedule)


def test_a_student_of_another_size_looks_for_its_own_precision(trained):
    student = methods.student_recipe(trained.recipe.with_stage(Part("train", {"precision": "bf16"})), "nano")
    assert student.stage("train").settings["precision"] == "auto"


def test_a_student_learns_its_teacher(trained, data):
    """More of the teacher's answers after distilling than an untrained student gives."""
    small = trained.compress(data, distill="nano", epochs=25, resamples=20, explain=4)
    assert small.reports["compress"].numbers["agreement"]["buys"]["same"].value > 0.85


def test_four_bits_are_not_pruned(trained, data):
    small = quick(trained, data, quantize="int4")
    if not any(type(m).__name__.startswith("Grouped") for m in small.network.modules()):
        pytest.fail("nothing in four bits to try")
    for kind in ("magnitude", "structured"):
        with pytest.raises(Unsupported, match="prune first"):
            quick(small, data, prune=0.5, kind=kind)
    layer = next(n for n, m in small.network.named_modules() if type(m).__name__ == "GroupedLinear")
    with pytest.raises(BundleError):
        replay(small.copy_network(), [{"edit": "prune_magnitude", "layers": [layer], "share": 0.5}])


def test_a_network_without_layers_is_refused(trained, data):
    class Bare(torch.nn.Module):
        def forward(self, batch):
            return {}

    from dataclasses import replace

    bare = replace(trained, network=Bare())
    for way in (
        methods.quantised,
        lambda b: methods.without_weights(b, 0.5),
        lambda b: methods.without_channels(b, 0.5, sample(trained, data)),
    ):
        with pytest.raises(Unsupported):
            way(bare)


# -- what it is measured with -------------------------------------------------------------------------------------------


def test_paired_differences_are_differences_of_the_metrics():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, 80)
    a, b = rng.dirichlet(np.ones(3), 80), rng.dirichlet(np.ones(3), 80)
    first, second = (classification(truth, p, "abc", resamples=20) for p in (a, b))
    for name, d in paired.of_classes(truth, a, b, resamples=200).items():
        assert d.value == pytest.approx(second[name].value - first[name].value, abs=1e-9), name
        assert d.low <= d.value <= d.high
    y, x, z = rng.normal(size=(3, 80))
    first, second = regression(y, x, resamples=20), regression(y, z, resamples=20)
    for name, d in paired.of_numbers(y, x, z, resamples=200).items():
        assert d.value == pytest.approx(second[name].value - first[name].value, abs=1e-9), name


def test_paired_intervals_are_narrower_than_those_of_strangers():
    """Two nearly equal models: the paired interval of the error is far inside each one's own."""
    rng = np.random.default_rng(4)
    y = rng.normal(size=200)
    x = y + rng.normal(size=200)
    z = x + rng.normal(0, 0.01, 200)
    paired_width = np.ptp([getattr(paired.of_numbers(y, x, z)["mse"], s) for s in ("low", "high")])
    own = regression(y, x)["mse"]
    assert paired_width < 0.2 * (own.high - own.low)


def test_attributions_add_up_to_the_difference_of_scores(trained, data):
    from luban.columns.examples import encode
    from luban.evaluation.attribution import _blank
    from luban.nn.tokens import Batch

    framed = data.framed("test", trained.recipe.frame)
    arrays = encode(trained.columns, trained.inputs, (), framed).arrays(np.arange(12))
    weights = attributions(trained.network, trained.columns, arrays, "spent", np.zeros(12, np.int64), steps=400)
    with torch.no_grad():
        ends = [trained.network(Batch.of(a)) for a in (arrays, _blank(trained.columns, arrays))]
        scores = [trained.network.score(o, {"spent": torch.zeros(12, dtype=torch.long)})["spent"] for o in ends]
    assert np.allclose(weights.sum(1), (scores[0] - scores[1]).numpy(), rtol=0.02, atol=0.02 * float(scores[0].std()))


def test_likeness_is_one_for_the_same_and_minus_one_for_the_opposite():
    a = np.random.default_rng(5).normal(size=(6, 9))
    for b, want in ((a, 1), (-a, -1), (2 * a, 1)):
        assert all(np.allclose(m, want) for m in likeness(a, b))
    assert np.isnan(likeness(a, np.zeros_like(a))[0]).all()
