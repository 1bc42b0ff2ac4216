"""Progressive resizing: which epochs see which side, what is refused, and a resumed run that goes on bit for bit."""

import numpy as np
import pyarrow as pa
import pytest
import torch

import luban
from luban.errors import LubanError
from luban.training.growing import scale, smaller, whole_from


def rows(count: int = 48, side: int = 12) -> pa.Table:
    """Bright squares at the left or at the right."""
    rng = np.random.default_rng(0)
    photos, right = rng.integers(0, 60, (count, side, side), np.uint8), rng.random(count) < 0.5
    for photo, r in zip(photos, right):
        photo[3:9, 7:11] += np.uint8(150 * r)
        photo[3:9, 1:5] += np.uint8(150 * (not r))
    return pa.table({"photo": pa.FixedShapeTensorArray.from_numpy_ndarray(photos), "y": np.where(right, "r", "l")})


def train(model, **settings):
    settings = {"epochs": 2, "batch": 16, "device": "cpu", "precision": "fp32", "augment": False} | settings
    return luban.train(rows(), "y", model={"photo": model}, size="nano", evaluate=False, **settings)


def test_each_side_has_its_share_of_the_epochs_and_the_last_what_is_over():
    assert [scale([0.5, 1.0], e, 5) for e in range(5)] == [0.5, 0.5, 1.0, 1.0, 1.0]
    assert [scale([0.25, 0.5, 1.0], e, 3) for e in range(3)] == [0.25, 0.5, 1.0]
    assert scale([0.5, 1.0], 0, 1) == 1.0 and scale([], 3, 9) == 1.0
    assert (whole_from([0.5, 1.0], 5), whole_from([0.5, 0.5, 1.0], 6), whole_from([], 5)) == (2, 4, 0)


def test_smaller_pixels_are_means_and_stay_whole():
    x = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    assert smaller(x, 0.5).tolist() == [[[[2, 4], [10, 12]]]]  # 2.5 and 10.5 go to the even neighbour
    assert smaller(x, 0.5).dtype == torch.uint8
    assert smaller(x.float(), 0.5).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]


def test_the_network_sees_small_images_first(monkeypatch):
    from luban.nn.vision.backbone import Backbone

    seen, before = [], Backbone.forward

    def forward(self, embedded, mask):
        seen.append((self.training, embedded.shape[-1]))
        return before(self, embedded, mask)

    monkeypatch.setattr(Backbone, "forward", forward)
    model = train({"resnet": {"width": 4}}, progressive=[0.5, 1.0])
    assert list(dict.fromkeys(s for training, s in seen if training)) == [6, 12]
    assert {s for training, s in seen if not training} == {6, 12}  # 6: the trial before training
    assert model.recipe.stage("train").settings["progressive"] == [0.5, 1.0]


def test_early_stopping_waits_for_whole_images(monkeypatch):
    from luban.training import loop

    losses = iter([0.1, *[9.0] * 9])
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"loss": next(losses)})
    model = train({"resnet": {"width": 4}}, progressive=[0.5, 1.0], epochs=6, patience=2)
    assert len(model.metrics) == 5  # three epochs of small images, then two without a better loss


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [("cnn", {"progressive": [0.5, 1.0]}, "made for one size"), ("vit", {"progressive": [0.5, 1.0]}, "made for one size"),
     ("resnet", {"progressive": [0.0, 1.0]}, "progressive"), ("resnet", {"progressive": [2.0]}, "progressive")],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_training(model, settings, said):
    with pytest.raises(LubanError, match=said):
        train(model, **settings)


def test_rows_without_pictures_are_refused():
    table = pa.table({"x": np.arange(40.0) % 7, "y": ["a", "b"] * 20})
    with pytest.raises(LubanError, match="progressive makes pictures smaller"):
        luban.train(table, "y", size="nano", evaluate=False, epochs=1, progressive=[0.5, 1.0])


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path):
    """Planted fault: a run that takes another epoch's side up would have other weights."""
    kept = {"progressive": [0.5, 1.0], "epochs": 4}
    whole = train({"resnet": {"width": 4}}, out=tmp_path / "whole", **kept)
    from luban.training import loop

    before, calls = loop.Run.finish_epoch, []

    def stop(self, heard):
        calls.append(1)
        if len(calls) == 2:
            raise loop.Stopped(15)
        return before(self, heard)

    loop.Run.finish_epoch = stop
    try:
        train({"resnet": {"width": 4}}, out=tmp_path / "part", **kept)
    except (LubanError, KeyboardInterrupt, SystemExit):
        pass
    finally:
        loop.Run.finish_epoch = before
    again = luban.train(
        rows(), "y", model={"photo": {"resnet": {"width": 4}}}, size="nano", evaluate=False, out=tmp_path / "part",
        resume=True, batch=16, device="cpu", precision="fp32", augment=False, **kept,
    )  # fmt: skip
    assert all(
        torch.equal(a, b) for a, b in zip(whole.network.state_dict().values(), again.network.state_dict().values())
    )
