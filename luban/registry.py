"""Everything that a recipe can name, one line each.

Values are strings, so that this page costs nothing to import. A new thing is one file and one line here. Other
packages add theirs through entry points `luban.columns`, `luban.encoders`, `luban.heads` ...; nothing is ever
imported from a path that stands in a file of the user's.
"""

from __future__ import annotations

import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from luban.errors import RecipeError, problem

COLUMNS = {
    "number": "luban.columns.number:Number",
    "category": "luban.columns.category:Category",
    "labels": "luban.columns.labels:Labels",
    "text": "luban.columns.text:Text",
    "image": "luban.columns.image:Image",
    "mask": "luban.columns.mask:Mask",
    "noise": "luban.columns.noise:Noise",
    "video": "luban.columns.video:Video",
    "tags": "luban.columns.tags:Tags",
    "span": "luban.columns.span:Span",
    "boxes": "luban.columns.boxes:Boxes",
    "chat": "luban.columns.chat:Chat",
    "preference": "luban.columns.preference:Preference",
}
FRAMES = {
    "row": "luban.data.frames:row",
    "pack": "luban.data.frames:pack",
}
ENCODERS = {
    "mlp": "luban.nn.encoders.mlp:MLP",
    "cnn": "luban.nn.encoders.cnn:CNN",
    "bag": "luban.nn.encoders.bag:Bag",
    "rnn": "luban.nn.encoders.rnn:RNN",
    "gru": "luban.nn.encoders.rnn:GRU",
    "lstm": "luban.nn.encoders.rnn:LSTM",
    "bilstm": "luban.nn.encoders.rnn:BiLSTM",
    "attention": "luban.nn.encoders.attention:Attention",
    "transformer": "luban.nn.encoders.transformer:Transformer",
    "classic": "luban.nn.encoders.transformer:Classic",
    "bert": "luban.nn.encoders.transformer:BERT",
    "gpt": "luban.nn.encoders.transformer:GPT",
    "pretrained": "luban.nn.encoders.pretrained:Pretrained",
    "lenet": "luban.nn.vision.lenet:LeNet",
    "alexnet": "luban.nn.vision.lenet:AlexNet",
    "vgg": "luban.nn.vision.vgg:VGG",
    "inception": "luban.nn.vision.inception:Inception",
    "resnet": "luban.nn.vision.resnet:ResNet",
    "densenet": "luban.nn.vision.densenet:DenseNet",
    "efficientnet": "luban.nn.vision.efficientnet:EfficientNet",
    "vit": "luban.nn.vision.vit:ViT",
    "timm": "luban.nn.vision.timm:Timm",
    "frames": "luban.nn.encoders.frames:Frames",
}
FUSIONS = {
    "concat": "luban.nn.fusion:Concat",
    "join": "luban.nn.join:Join",
    "film": "luban.nn.film:FiLM",
    "pair": "luban.nn.pair:Pair",
    "memory": "luban.nn.fusion:Memory",
    "prefix": "luban.nn.prefix:Prefix",
    "masked": "luban.nn.networks.masked:Guess",
    "skip_gram": "luban.nn.skip_gram:SkipGram",
    "match": "luban.nn.match:Match",
    "own": "luban.nn.networks.own:Own",
}
HEADS = {
    "category": "luban.nn.heads.category:CategoryHead",
    "number": "luban.nn.heads.number:NumberHead",
    "labels": "luban.nn.heads.labels:LabelsHead",
    "tags": "luban.nn.heads.tags:TagsHead",
    "span": "luban.nn.heads.span:SpanHead",
    "text": "luban.nn.heads.text:Llama",
    "llama": "luban.nn.heads.text:Llama",
    "gpt": "luban.nn.heads.text:GPT",
    "transformer": "luban.nn.heads.text:Classic",
    "pretrained": "luban.nn.heads.pretrained:Pretrained",
    "lstm": "luban.nn.heads.text_rnn:LSTMText",
    "dcgan": "luban.nn.vision.dcgan:DCGAN",
    "fcos": "luban.nn.heads.fcos:FCOS",
    "faster_rcnn": "luban.nn.heads.faster_rcnn:FasterRCNN",
    "unet": "luban.nn.heads.unet:UNet",
}
EDITS = {
    "quantize_linear": "luban.nn.edits:quantize_linear",
    "quantize_groups": "luban.nn.edits:quantize_groups",
    "quantize_static": "luban.nn.static:quantize_static",
    "prune_channels": "luban.nn.edits:prune_channels",
    "prune_magnitude": "luban.nn.edits:prune_magnitude",
    "low_rank": "luban.nn.edits:low_rank",
    "lora": "luban.nn.lora:lora",
    "merge_lora": "luban.nn.lora:merge_lora",
}
OPTIMIZERS = {
    "adamw": "luban.training.rules:adamw",
    "adam": "luban.training.rules:adam",
    "sgd": "luban.training.rules:sgd",
    "rmsprop": "luban.training.rules:rmsprop",
    "adagrad": "luban.training.rules:adagrad",
    "lion": "luban.training.rules:lion",
    "muon": "luban.training.rules:muon",
}
SCHEDULES = {
    "cosine": "luban.training.schedules:cosine",
    "linear": "luban.training.schedules:linear",
    "constant": "luban.training.schedules:constant",
    "step": "luban.training.schedules:step",
    "exponential": "luban.training.schedules:exponential",
    "warmup-stable-decay": "luban.training.schedules:warmup_stable_decay",
    "one-cycle": "luban.training.schedules:OneCycle",
    "reduce-on-plateau": "luban.training.schedules:Plateau",
}
STAGES = {
    "start": "luban.stages.start:start",
    "train": "luban.stages.train:train",
    "evaluate": "luban.stages.evaluate:evaluate",
    "compress": "luban.stages.compress:compress",
    "export": "luban.stages.export:export",
    "audit": "luban.stages.audit:audit",
    "explain": "luban.stages.explain:explain",
    "serve": "luban.stages.serve:serve",
    "index": "luban.stages.index:index",
    "shots": "luban.stages.shots:shots",
}
SEARCH = {
    "tune": "luban.tuning.search:search",
    "curve": "luban.tuning.curve:curve",
}
DATA = {
    "split": "luban.data.splits:split",
    "clean": "luban.data.cleaning:clean",
}
RUN = {
    "scale": "luban.scale:scale",
}

ROOMS: dict[str, dict[str, str]] = {
    "columns": COLUMNS,
    "frames": FRAMES,
    "encoders": ENCODERS,
    "fusions": FUSIONS,
    "heads": HEADS,
    "edits": EDITS,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "stages": STAGES,
    "search": SEARCH,
    "data": DATA,
    "run": RUN,
}
ALIASES = {"shap": "kernel-shap"}


def names(room: str) -> tuple[str, ...]:
    """All names of a room, those of installed plug-ins included."""
    return tuple(ROOMS[room]) + tuple(n for n in _plugins(room) if n not in ROOMS[room])


def find(room: str, name: str) -> Any:
    """The object behind a name. Raises RecipeError with the nearest name."""
    if name in ROOMS[room]:
        module, _, attribute = ROOMS[room][name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if name in _plugins(room):
        return _plugins(room)[name].load()
    raise RecipeError(problem("registry.unknown", name=name, room=room, allowed=names(room)))


def register(room: str, name: str, where: str) -> None:
    """Add a thing for the length of this process (`"my_module:MyEncoder"`); a package would use an entry point."""
    ROOMS[room][name] = where


@cache
def _plugins(room: str) -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {e.name: e for e in entry_points(group=f"luban.{room}")}


@cache
def _written() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "schema.json").read_text(encoding="utf-8"))


def schema(room: str, name: str) -> dict[str, Any]:
    """Settings of one thing as JSON Schema: from `schema.json`, so that checking imports none of the things."""
    written = _written().get(room, {}).get(name)
    return written if written is not None else describe(find(room, name))


def describe(thing: Any) -> dict[str, Any]:
    """The schema of a thing from its signature, with what it says about itself (what it accepts, its default encoder)."""
    from luban.settings import schema_of

    result = schema_of(thing, skip=("state", "text_column", "image_column"))
    for mark in (
        "accepts",
        "form",
        "of_form",
        "lends",
        "encoder",
        "head",
        "output",
        "brings",
        "student",
        "fields",
        "reads",
        "needs",
        "short",
    ):
        value = getattr(thing, mark, None)
        if isinstance(value, (str, tuple, dict)) and (value or mark in ("encoder", "head")):
            result["x-" + mark] = list(value) if isinstance(value, tuple) else value
    marks = ("along", "joint", "sequences", "alone", "drawn", "draws", "mapped", "joins", "pools", "ahead")
    return result | {"x-" + mark: True for mark in marks if getattr(thing, mark, None) is True}


def everything() -> dict[str, Any]:
    """What `schema.json` holds; `python -m luban.registry` writes it."""
    return {room: {name: describe(find(room, name)) for name in entries} for room, entries in ROOMS.items()}


if __name__ == "__main__":
    path = Path(__file__).parent / "schema.json"
    path.write_text(json.dumps(everything(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
