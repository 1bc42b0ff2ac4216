"""Tokens a second of generation: Luban's `Writer` beside `transformers.generate`, the same weights, batches of 1 and 8.

    python -m benchmarks.language.generate [--size 10m | gpt2 | --model FOLDER] [--new 128] [--prompt 32] [--pairs 5] [--json FILE]

A GPT of the GPT-2 shape with random weights is made in Luban and written as a GPT-2 folder, which `transformers` loads. Both write greedily from
the same random prompts, the same number of tokens, and `same` counts the tokens that are equal. Both sides in turns within one process, A B A B,
each turn in CPU seconds of the process; the rival is the fastest of what its documentation offers, chosen by a trial of each (`hf_generate`),
and its default, beside which Luban writes in fp32; beside the fastest in bf16 where the processor has it. `limit`: tokens a second if every weight had to be read once a step and nothing else took time, at the memory's speed as measured
here by a product of a matrix and a vector of that size.

Random weights write what cannot be guessed. With `--model` (a saved language model, or a name that `luban import` takes) both go on with the first tokens of
held-out documents (`english-books`, test), eight of them: one by one, each a pair, and all at once. The rival is its default, and with `prompt_lookup_num_tokens`, which it has for one text; once both draw at temperature 1, where the texts differ.
`readings`: how often Luban's network was read for each token, greedily and at temperatures 0.7 and 1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.common import finish
from benchmarks.language import hf_generate
from benchmarks.language.nanogpt_loop import clock as clock_of
from benchmarks.language.splits import split
from luban.bundle import Bundle, build_network
from luban.columns.text import Text as Column
from luban.generation.sampling import Sampling
from luban.generation.writing import Text, Writer, written
from luban.huggingface import imported
from luban.machine import able
from luban.recipe import Recipe, fill
from luban.stages.export.to_huggingface import to_huggingface

SIZES = {
    "nano": (32, 2, 2, 300, 64),
    "10m": (384, 6, 6, 2000, 256),
    "gpt2": (768, 12, 12, 50_256, 256),
}  # width, layers, heads, vocabulary, length
TEXTS = 8


class Ids(Column):
    """A vocabulary without words: neither side makes a text of what it writes."""

    def text(self, ids: Any) -> str:
        return ""


def network(size: str) -> Any:
    """A GPT with random weights, large enough that what is read makes a difference; its vocabulary is that of no text."""
    width, layers, heads, vocabulary, length = SIZES[size]
    column = {"text": {"vocabulary": vocabulary, "length": length}}
    model = {"text": {"gpt": {"width": width, "layers": layers, "heads": heads}}}
    recipe = Recipe.of({"luban": 1, "outputs": {"text": column}, "model": model}).resolved()
    learned = Ids("text", **fill("columns", recipe.outputs["text"], "small").settings).supposed()
    torch.manual_seed(0)
    made = build_network(recipe, {"text": learned}).eval()
    for p in made.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, 0, 0.08)
    return made


def folder(made: Any, place: Path) -> Path:
    """The same weights as GPT-2 names them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, width = made.writer.layers, made.writer.layers.shape.width
    config = GPT2Config(
        vocab_size=made.writer.embedding.num_embeddings, n_positions=layers.shape.length, n_embd=width,
        n_layer=len(layers.layers), n_head=layers.shape.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    found = {"wte.weight": made.writer.embedding.weight, "wpe.weight": layers.positions}
    parts = {"ln_1": "before", "ln_2": "between", "attn.c_attn": "attention.inner", "attn.c_proj": "attention.outer",
             "mlp.c_fc": "dense.inner", "mlp.c_proj": "dense.outer"}  # fmt: skip
    for i, layer in enumerate(layers.layers):
        for theirs, ours in parts.items():
            module = layer.get_submodule(ours)
            found[f"h.{i}.{theirs}.weight"] = module.weight.T if "c_" in theirs else module.weight
            found[f"h.{i}.{theirs}.bias"] = module.bias
    found |= {"ln_f.weight": layers.norm.weight, "ln_f.bias": layers.norm.bias}
    model = GPT2LMHeadModel(config)
    model.transformer.load_state_dict({k: v.detach().clone() for k, v in found.items()})
    model.save_pretrained(place)
    return place


def mine(
    made: Any, ids: torch.Tensor, new: int, precision: str = "fp32", temperature: float = 0.0
) -> tuple[float, list[list[int]]]:
    """Seconds (of the processor; of the wall on an accelerator), and the tokens of each."""
    clock = partial(clock_of, str(next(made.parameters()).device))
    texts = [Text(row, new, Sampling(temperature=temperature, seed=i)) for i, row in enumerate(ids.tolist())]
    column, end = made.outputs["text"], made.outputs["text"].state["end"]
    column.state["end"] = -2  # nothing ends a text, as on the other side
    started = clock()
    written(made, texts, precision=precision)
    seconds = clock() - started
    column.state["end"] = end
    return seconds, [t.ids for t in texts]


def theirs(model: Any, ids: torch.Tensor, new: int, more: dict[str, Any]) -> tuple[float, list[list[int]]]:
    settings = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0, **more}
    ids, clock = ids.to(model.device), partial(clock_of, str(model.device))
    started = clock()
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return clock() - started, out[:, ids.shape[1] :].tolist()


def bandwidth(values: int, device: str = "cpu") -> float:
    """Bytes a second (of the processor, or the wall) that a matrix of so many floats is read with, in a product with a vector."""
    a, x = torch.randn(max(1, values // 1024), 1024, device=device), torch.randn(1024, device=device)
    found = []
    for _ in range(7):
        started = clock_of(device)
        for _ in range(4):
            a @ x
        found.append(4 * a.numel() * 4 / max(clock_of(device) - started, 1e-9))
    return max(found)


# On an accelerator nothing is tried.
PLAIN = {"default": ("float32", "dynamic"), "best": ("bfloat16", "dynamic")}


def compared(
    made: Any, place: Path, batch: int, new: int, prompt: int, pairs: int, device: str = "cpu", tried: bool = True
) -> dict[str, Any]:
    """`tried`: the rival's best setting by a trial of each, on a processor; else `PLAIN`."""
    from transformers import AutoModelForCausalLM

    made.to(device)
    ids = hf_generate.prompts(batch, prompt, made.writer.embedding.num_embeddings - 1, 0)
    sides = hf_generate.sides(str(place), ids, max(new // 4, 8), 1) if tried else {}
    sides |= {n: {"dtype": d, "cache": c} for n, (d, c) in PLAIN.items() if not tried}
    weights = sum(p.numel() for p in made.parameters())
    limit = batch * bandwidth(weights, device) / (4 * weights)
    rows = {}
    for side in ("default", "best"):
        dtype, cache = sides[side]["dtype"], sides[side]["cache"]
        model = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype)).eval().to(device)
        more = {"cache_implementation": "static"} if cache == "static" else {}
        ours = "bf16" if side == "best" and able(device) else "fp32"
        mine(made, ids, new, ours), theirs(model, ids, 8, more)
        turns = [(mine(made, ids, new, ours), theirs(model, ids, new, more)) for _ in range(pairs)]
        ratios = [b[0] / a[0] for a, b in turns]
        (_, written_here), (_, other) = turns[0]
        equal = sum(x == y for p, q in zip(written_here, other) for x, y in zip(p, q))
        speed = batch * new / statistics.median(a[0] for a, _ in turns)
        rows[side] = {
            "luban": speed, "rival": batch * new / statistics.median(b[0] for _, b in turns),
            "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "n": pairs,
            "same": equal / (batch * new), "settings": ours, "rival_settings": f"{dtype}, {cache}",
            "trials": sides.get("trials", {}),
            "limit": limit, "fraction_of_limit": speed / limit,
        }  # fmt: skip
    return rows


def learned(name: str, new: int, prompt: int, rounds: int) -> dict[str, Any]:
    """The same with weights that have learned, and texts that somebody wrote."""
    from transformers import AutoModelForCausalLM

    model = Bundle.load(name) if Path(name).exists() else imported(name)
    made = model.engine.network
    column = made.outputs["text"]
    beginnings = [column.prompt(row["text"][: 20 * prompt])[:prompt] for row in split("english-books")["test"]]
    ids = torch.tensor(np.stack([b for b in beginnings if len(b) == prompt][:TEXTS]))
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        to_huggingface(model, str(Path(place) / "hf"))
        other = AutoModelForCausalLM.from_pretrained(Path(place) / "hf", dtype=torch.float32).eval()
        drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0}
        for name, batches, more in (
            ("batch 1", ids.split(1), {}),
            ("batch 1, lookup", ids.split(1), {"prompt_lookup_num_tokens": 10}),
            ("batch 1, drawn", ids.split(1), drawn),
            (f"batch {TEXTS}", [ids], {}),
            (f"batch {TEXTS}, drawn", [ids], drawn),
        ):
            heat = float(more is drawn)
            mine(made, batches[0], 8), theirs(other, batches[0], 8, more)
            turns = [
                (mine(made, b, new, temperature=heat), theirs(other, b, new, more))
                for _ in range(rounds)
                for b in batches
            ]
            ratios = [b[0] / a[0] for a, b in turns]
            equal = sum(x == y for a, b in turns for p, q in zip(a[1], b[1]) for x, y in zip(p, q))
            count = len(batches[0]) * new
            rows[name] = {
                "luban": count / statistics.median(a[0] for a, _ in turns), "rival": count / statistics.median(b[0] for _, b in turns),
                "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "n": len(turns),
                "same": None if heat else equal / (len(turns) * count),
            }  # fmt: skip
    rows["readings"] = {str(t): readings(made, ids, new, t) for t in (0.0, 0.7, 1.0)}
    return {"parameters": model.parameters(), **rows}


def readings(made: Any, ids: torch.Tensor, new: int, temperature: float) -> float:
    """How often the network is read for a token of one text."""
    steps = tokens = 0
    for i, row in enumerate(ids.tolist()):
        writer = Writer(made)
        text = Text(row, new, Sampling(temperature=temperature, seed=i))
        writer.add([text])
        while writer.texts:
            writer.step()
            steps += 1
        tokens += len(text.ids)  # one may end by itself
    return steps / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="10m")
    parser.add_argument("--model")
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--json")
    a = parser.parse_args()
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    about = {"new": a.new, "prompt": a.prompt, "transformers": transformers.__version__}
    if a.model:
        with torch.inference_mode():
            rows = learned(a.model, a.new, a.prompt, a.pairs)
        finish("language.generate", {"model": Path(a.model).name, **about, **rows}, a.json)
        return
    made = network(a.size)
    with tempfile.TemporaryDirectory() as place, torch.inference_mode():
        folder(made, Path(place))
        rows = {f"batch {b}": compared(made, Path(place), b, a.new, a.prompt, a.pairs) for b in a.batches}
    count = sum(p.numel() for p in made.parameters())
    finish("language.generate", {"size": a.size, "parameters": count, **about, **rows}, a.json)


if __name__ == "__main__":
    main()
