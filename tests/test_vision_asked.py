"""What an image network leans on, a library or the weights of others: what is wrong with it is told before data are prepared."""

import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import luban
from luban import asking, pipeline
from luban.columns.image import Image as Column
from luban.errors import LubanError, MissingExtra, RecipeError, RequestError, need
from luban.nn.vision.resnet import ResNet
from luban.part import Part
from luban.recipe import Recipe
from luban.tuning import verbs

BROKEN = "raise RuntimeError('operator torchvision::nms does not exist')"
SOUND = "def list_models():\n    return ['resnet18', 'resnet34']\n"


@pytest.fixture
def rows(tmp_path):
    """Pictures, and weights of a ResNet of another width than published ones have."""
    for i in range(60):
        Image.new("RGB", (32, 32), (4 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "rows.csv").write_text("image,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(60)))
    torch.manual_seed(0)
    for name, width in (("fits.safetensors", 64), ("narrow.safetensors", 8)):
        column = Column("i", side=64, channels=3).supposed()
        save_file(ResNet([column], depth=18, width=width, stem="imagenet").net.state_dict(), tmp_path / name)
    return tmp_path / "rows.csv"


@pytest.fixture
def untouched(monkeypatch):
    """No data may be prepared."""

    def prepared(*_):
        raise AssertionError("data were prepared")

    monkeypatch.setattr(asking, "prepare", prepared)
    monkeypatch.setattr(pipeline, "prepare", prepared)
    monkeypatch.setattr(verbs, "prepare", prepared)


def recipe(rows, image, **inputs):
    return {
        "luban": 1,
        "data": {"rows": str(rows)},
        "inputs": {"image": {"image": {"side": 64, **inputs}}},
        "outputs": {"label": "category"},
        "model": {"image": image},
    }


def library(folder, monkeypatch, text):
    (folder / "timm").mkdir(exist_ok=True)
    (folder / "timm" / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(sys.modules, "timm", None)  # so that what is imported in the test is gone behind it
    monkeypatch.delitem(sys.modules, "timm")


VERBS = (luban.check, luban.train, lambda r: luban.run(r, "never"), lambda r: luban.curve(r, rows=[0.5]))


def refused(verb, asked):
    with pytest.raises(LubanError) as error:
        verb(asked)
    return str(error.value)


@pytest.mark.parametrize("verb", VERBS, ids=["check", "train", "run", "curve"])
def test_it_is_told_before_data_are_prepared(verb, rows, untouched, monkeypatch):
    monkeypatch.setattr(asking, "find_spec", lambda name: None)
    said = refused(verb, recipe(rows, "timm:resnet18"))
    assert "model.image" in said and "luban[timm]" in said
    said = refused(verb, recipe(rows, {"resnet": {"weights": "nothere.pth"}}))
    assert "no weights file 'nothere.pth'" in said and ".safetensors" in said and "efficientnet-lite0" in said
    assert "SmolLM2" not in said and "hub (" not in said
    said = refused(verb, recipe(rows, {"resnet": {"weights": str(rows.parent / "narrow.safetensors")}}))
    assert "not those of this network" in said and "conv1.weight" in said
    with pytest.raises(AssertionError, match="were prepared"):  # the control: what fits goes on to the data
        verb(recipe(rows, {"resnet": {"weights": str(rows.parent / "fits.safetensors")}}))


def test_names_near_and_endings_and_folders(rows, untouched):
    said = refused(luban.check, recipe(rows, {"resnet": {"weights": str(rows.parent / "fit.safetensors")}}))
    assert "Did you mean" in said and "fits.safetensors" in said
    assert "'.csv'" in refused(luban.check, recipe(rows, {"vgg": {"weights": str(rows)}}))
    (rows.parent / "empty").mkdir()
    said = refused(luban.check, recipe(rows, {"vgg": {"weights": str(rows.parent / "empty")}}))
    assert "holds no file of weights" in said


def test_networks_inside_of_others_are_seen():
    plain = {
        "luban": 1,
        "inputs": {"clip": "video"},
        "outputs": {"label": "category"},
        "model": {"clip": {"frames": {"each": {"resnet": {"weights": "nothere.pth"}}}}},
    }
    (wrong,) = asking._lacking(Recipe.of(plain))
    assert wrong.place == "model.clip.frames.each.resnet.weights"


def test_weights_that_go_with_a_size_are_left_to_training_where_it_is_not_known(rows):
    column = Column("i", side=32, channels=3).supposed()
    from luban.nn.vision.vit import ViT

    net = ViT([column], width=32, layers=1, heads=2, patch=8).net
    save_file(net.state_dict(), rows.parent / "vit.safetensors")
    asked = {"vit": {"width": 32, "layers": 1, "heads": 2, "patch": 8, "weights": str(rows.parent / "vit.safetensors")}}
    assert "pos_embed" in refused(luban.check, recipe(rows, asked))
    luban.check(recipe(rows, asked, side="auto"))


def test_a_check_fetches_no_weights_and_says_what_training_will_fetch(rows, monkeypatch, tmp_path):
    from luban.data import models

    def fetched(*_, **__):
        raise AssertionError("was fetched")

    monkeypatch.setattr(models, "found", fetched)
    monkeypatch.setattr(models, "cache", lambda: tmp_path / "empty")
    told = lambda model: [str(f) for f in asking.check(recipe(rows, model))[1] if f.id == "model.to_fetch"]  # noqa: E731
    (said,) = told({"efficientnet": {"weights": "efficientnet-lite0"}})
    assert "model.image.efficientnet.weights" in said and "17.4 MB" in said
    (said,) = told({"resnet": {"weights": "some/where"}})
    assert "some/where" in said and "MB" not in said
    assert told({"resnet": {"weights": str(rows.parent / "fits.safetensors")}}) == []
    with pytest.raises(AssertionError, match="was fetched"):  # the control: training does fetch
        luban.train(recipe(rows, {"efficientnet": {"weights": "efficientnet-lite0"}}))


# -- timm --------------------------------------------------------------------------------------------------------------------


def test_a_short_name_is_the_long_one():
    plain = {"luban": 1, "inputs": {"image": "image", "clip": "video"}, "outputs": {"label": "category"}}
    asked = plain | {"model": {"image": "timm:resnet18", "clip": {"frames": {"each": "timm:resnet34"}}}}
    found = Recipe.of(asked).model
    assert found["image"] == Part("timm", {"name": "resnet18"})
    assert found["clip"].settings["each"] == {"timm": {"name": "resnet34"}}
    changed = Recipe.of(plain, changes=("model.image=timm:hf-hub:a/b.c",)).model
    assert changed["image"] == Part("timm", {"name": "hf-hub:a/b.c"})
    assert Recipe.of(Recipe.of(asked).plain()) == Recipe.of(asked)
    with pytest.raises(RecipeError, match="vgg:16"):
        Recipe.of(plain | {"model": {"image": "vgg:16"}})


def test_a_timm_that_cannot_load_is_told_with_what_helps(rows, untouched, monkeypatch):
    library(rows.parent, monkeypatch, BROKEN)
    said = refused(luban.check, recipe(rows, "timm:resnet18"))
    assert "nms does not exist" in said and "model.image" in said
    assert "pip uninstall torchvision timm" in said and "luban[timm]" not in said
    assert said == refused(luban.train, recipe(rows, "timm:resnet18"))
    with pytest.raises(MissingExtra) as error:
        need("timm", "timm")
    assert error.value.id == "extra.tied"


def test_another_fault_of_it_is_mended_by_installing_it_anew(rows, untouched, monkeypatch):
    library(rows.parent, monkeypatch, "raise OSError('a file is cut off')")
    said = refused(luban.check, recipe(rows, "timm:resnet18"))
    assert "cut off" in said and "luban[timm]" in said and "uninstall" not in said


def test_a_network_that_it_does_not_know_is_said(rows, untouched, monkeypatch):
    library(rows.parent, monkeypatch, SOUND)
    said = refused(luban.check, recipe(rows, "timm:resnet81"))
    assert "no network 'resnet81'" in said and "resnet18" in said


SCRIPT = """
import sys
import luban
try:
    luban.check({recipe!r})
except luban.LubanError as e:
    print(e)
assert "torch" not in sys.modules
"""


def test_what_names_tell_needs_no_torch(rows):
    code = SCRIPT.format(recipe=recipe(rows, {"resnet": {"weights": "nothere.pth"}}))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "nothere.pth" in done.stdout, done.stderr


def test_a_hub_that_says_no_is_quoted_by_the_sentence(rows, untouched, monkeypatch):
    from luban.data import models

    def refuse(*_, **__):
        raise OSError("Cannot find it " + "and " * 60 + "so on. More is said here that nobody reads.\nAnd more.")

    hub = need("huggingface_hub", "transformers")
    monkeypatch.setattr(hub, "snapshot_download", refuse)
    said = refused(luban.train, recipe(rows, {"resnet": {"weights": "some/where"}}))
    assert "nobody reads" not in said and " ...)" in said and "efficientnet-lite0" in said and "MiniLM" not in said
    with pytest.raises(RequestError, match="MiniLM"):  # where a language model is asked for, those are offered
        models.found("some/where")
