"""Smaller networks of text: integers in the weights, and students; what each keeps, how large it is, how fast it writes.

    python -m benchmarks.language.smaller [--only gpt imported vectors student classifier] [--gpt FOLDER] [--movie FOLDER] [--json FILE]

| part | what is compared, on the same held-out texts |
|---|---|
| gpt | the network of recipes/gpt-books.yaml after `--steps` updates: float32, int8, int4 |
| imported | a published GPT (`--model`, SmolLM2), the same three |
| vectors | the vectors that MiniLM's published float32 weights make of 300 film sentences, and those of int8 and int4 |
| student | a smaller GPT distilled from the first one, the same smaller GPT trained alone for as many CPU seconds, and for as many updates |
| classifier | MiniLM fine-tuned on film sentences (recipes/minilm-movie.yaml, `--epochs`), distilled into size nano, beside nano trained alone for as many CPU seconds |

Held out are the 34 test documents of `english-books`, of each its first `--characters`; the difference to float32, or to the student alone, is paired
by document (by row for the classifier). Nothing is chosen: every setting is the default or that of the recipe. Seconds are CPU seconds of the process; the
two students take the seconds of a few updates of each to know how many fit. FOLDERs hold models trained before by these recipes. With `--json` the parts
that were measured replace those in the file, the others stay.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.common import finish, learned, taught
from benchmarks.language import hf_generate
from benchmarks.language.generate import mine
from benchmarks.language.recipe import RECIPES
from benchmarks.language.splits import split
from luban.bundle import Bundle, build_network
from luban.columns.kept import encode_kept
from luban.data.prepare import data_of, prepare
from luban.data.sources import read
from luban.evaluation.intervals import mean, paired_difference
from luban.evaluation.table import table
from luban.evaluation.text_metrics import bits_per_byte, perplexity
from luban.huggingface import imported
from luban.part import Part
from luban.recipe import Recipe
from luban.stages.compress import methods
from luban.training.loop import fit
from luban.training.objectives import Distillation, supervised
from luban.training.random import seed_torch

TRIAL = 6  # updates that tell how long one takes
SMALL = {"width": 96, "layers": 3, "heads": 4}
PROMPT, PAIRS = 32, 5
SENTENCES = 300


def held_out(characters: int) -> list[str]:
    return [row["text"][:characters] for row in split("english-books")["test"]]


# -- integers ----------------------------------------------------------------------------------------------------------


def likely(model: Bundle, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Nats of each text, and its tokens."""
    (name,) = model.outputs
    losses = (
        table(model, data_of([{name: t} for t in texts], model.columns), np.arange(len(texts))).outputs[name].losses
    )
    return losses[:, 0], losses[:, 1]


def on_disk(model: Bundle) -> int:
    """Bytes of the weights as saved."""
    with tempfile.TemporaryDirectory() as place:
        model.save(Path(place) / "model")
        return (Path(place) / "model" / "model.safetensors").stat().st_size


def integers(model: Bundle, texts: list[str], new: int) -> dict[str, Any]:
    """Float32, int8, int4: bits per byte, perplexity, the difference to float32, bytes, tokens a CPU second (one text, greedy)."""
    sides = {"fp32": model, "int8": methods.quantised(model, "int8"), "int4": methods.quantised(model, "int4")}
    size, rows = np.array([len(t.encode()) for t in texts]), {}
    whole = None
    for name, side in sides.items():
        nats, tokens = likely(side, texts)
        whole = nats if whole is None else whole
        rows[name] = {
            "bits_per_byte": bits_per_byte(nats, size).to_json(),
            "worse": bits_per_byte(nats - whole, size).to_json(),
            "perplexity": perplexity(nats, tokens).to_json(),
            "bytes": on_disk(side),
        }
    for name, seconds in in_turns({n: writing(s, new) for n, s in sides.items()}).items():
        rows[name]["tokens_a_second"] = new / statistics.median(seconds)
    return {
        "sides": rows,
        "documents": len(texts),
        "bytes": int(size.sum()),
        "parameters": model.parameters(),
        "new": new,
    }


def vectors(name: str) -> dict[str, Any]:
    """How far the vectors of an encoder's integers lie from those of its own weights: 1 - cosine, mean over sentences; bytes."""
    model = imported(name)
    sides = {"fp32": model, "int8": methods.quantised(model, "int8"), "int4": methods.quantised(model, "int4")}
    (column,) = model.columns.values()
    sentences = read("movie-sentences").column("sentence").to_pylist()[-SENTENCES:]
    found = {
        n: np.concatenate([pooled(s, column, sentences[i : i + 50]) for i in range(0, SENTENCES, 50)])
        for n, s in sides.items()
    }
    apart = {n: 1 - (v * found["fp32"]).sum(1) for n, v in found.items()}
    rows = {n: {"distance": mean(apart[n]).to_json(), "bytes": on_disk(s)} for n, s in sides.items()}
    return {"sides": rows, "sentences": SENTENCES, "model": name}


@torch.inference_mode()
def pooled(model: Bundle, column: Any, sentences: list[str]) -> np.ndarray:
    """The mean of an encoder's states over the real positions of each sentence, of length 1: (N, D)."""
    x, mask = map(torch.as_tensor, column.collate(column.encode_all(sentences)))
    network = model.engine.network
    (encoder,) = network.encoders
    tokens = encoder(encoder.embed(x, mask), mask)
    real = tokens.mask[..., None].to(tokens.x.dtype)
    return torch.nn.functional.normalize((tokens.x * real).sum(1) / real.sum(1), dim=1).double().numpy()


def writing(model: Bundle, new: int) -> Callable[[], float]:
    """CPU seconds of `new` tokens behind a prompt of random ids."""
    network = model.engine.network
    ids = hf_generate.prompts(1, PROMPT, network.outputs[network.written].size - 1, 0)
    return lambda: mine(network, ids, new)[0]


def in_turns(calls: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """A B C A B C, after a warm-up of each."""
    for call in calls.values():
        call()
    turns = [{n: call() for n, call in calls.items()} for _ in range(PAIRS)]
    return {n: [t[n] for t in turns] for n in calls}


# -- students ----------------------------------------------------------------------------------------------------------


class Lessons:
    """A teacher's rows, encoded once; networks of `target` (a size or a recipe) that learn from them, with the teacher or alone."""

    def __init__(self, teacher: Bundle, data: Any, target: str, watched: int):
        self.teacher, self.recipe = teacher, methods.student_recipe(teacher.recipe, target)
        framed = [data.framed(data.part(p), teacher.recipe.frame) for p in ("train", "validation")]
        framed[1] = framed[1].some(watched)
        self.rows = [encode_kept(teacher.columns, teacher.inputs, teacher.outputs, f) for f in framed]
        self.precision = "auto"

    def taught(self, alone: bool, **length: int) -> tuple[Bundle, float]:
        """A new network after `steps` or `epochs`, and its CPU seconds. Settings and first weights are the same on both sides."""
        stage = self.recipe.stage("train") or Part("train")
        settings = {**stage.settings, "precision": self.precision, "patience": 0, "steps": length.get("steps", 0)}
        recipe = self.recipe.with_stage(Part("train", settings))
        seed_torch(recipe.seed, "weights")
        network = build_network(recipe, self.teacher.columns)
        epochs, (training, validation) = length.get("epochs", 0), self.rows
        objective, started = supervised, time.process_time()
        if not alone:
            teacher = self.teacher.copy_network()
            known, training = methods.once_asked(teacher, recipe, training, epochs, network)
            objective = Distillation(teacher, kept=known)
        asking, found = time.process_time() - started, methods.course_of(recipe, training, epochs, network, objective)
        self.precision, started = found.precision, time.process_time()  # found once, then of all
        fit(network, training, validation, plan=found, objective=objective)
        seconds = asking + time.process_time() - started
        return replace(self.teacher, recipe=recipe, network=network.cpu().eval(), edits=[]), seconds


def student(teacher: Bundle, texts: list[str], updates: int, work: Path) -> dict[str, Any]:
    """The smaller GPT with a teacher for `updates`, alone for as many CPU seconds, and alone for as many updates."""
    thin = Recipe.load(RECIPES / "gpt-books.yaml").plain() | {"model": {"text": {"llama": SMALL}}}
    path = work / "thin.yaml"
    path.write_text(json.dumps(thin), encoding="utf-8")  # JSON is YAML
    lessons = Lessons(teacher, prepare(teacher.recipe), str(path), 1)
    each = {}
    for name in ("distilled", "alone"):
        few, more = (lessons.taught(name == "alone", steps=n)[1] for n in (TRIAL, 3 * TRIAL))
        each[name] = (more - few) / (2 * TRIAL)
    longer = round(updates * each["distilled"] / each["alone"])
    found = {
        "distilled": (*lessons.taught(False, steps=updates), updates),
        "alone": (*lessons.taught(True, steps=longer), longer),
        "as many updates": (*lessons.taught(True, steps=updates), updates),
    }
    size, rows = np.array([len(t.encode()) for t in texts]), {}
    nats = {"teacher": likely(teacher, texts)[0]} | {n: likely(m, texts)[0] for n, (m, _, _) in found.items()}
    for name, own in nats.items():
        rows[name] = {"bits_per_byte": bits_per_byte(own, size).to_json()}
        rows[name]["below_alone"] = bits_per_byte(nats["alone"] - own, size).to_json()
    for name, (model, seconds, steps) in found.items():
        rows[name] |= {"cpu_seconds": seconds, "updates": steps, **large(model)}
    rows["teacher"] |= large(teacher)
    return rows | {"seconds_an_update": each, "precision": lessons.precision}


def large(model: Bundle) -> dict[str, int]:
    return {"parameters": model.parameters(), "bytes": on_disk(model)}


def classifier(teacher: Bundle, epochs: int) -> dict[str, Any]:
    """Size nano with a teacher for `epochs`, and alone for as many CPU seconds; right answers on the test rows."""
    data = prepare(teacher.recipe)
    lessons = Lessons(teacher, data, "nano", 200)
    distilled, seconds = lessons.taught(False, epochs=epochs)
    one = lessons.taught(True, epochs=1)[1]
    many = max(1, round(seconds / one))
    single, others = lessons.taught(True, epochs=many)
    models = {"teacher": teacher, "distilled": distilled, "alone": single}
    (output,) = teacher.outputs
    right = {n: answered(m, data, output) for n, m in models.items()}
    rows: dict[str, Any] = {n: {"accuracy": mean(r).to_json(), **large(models[n])} for n, r in right.items()}
    rows["distilled"] |= {"cpu_seconds": seconds, "epochs": epochs}
    rows["alone"] |= {"cpu_seconds": others, "epochs": many}
    difference = paired_difference(right["distilled"], right["alone"]).to_json()
    return rows | {"difference": difference, "rows": len(right["teacher"]), "precision": lessons.precision}


def answered(model: Bundle, data: Any, output: str) -> np.ndarray:
    """1 where the answer to a test row is right."""
    found = table(model, data, data.part("test")).outputs[output]
    right = found.raw.reshape(len(found.raw), -1)[:, -1] > 0
    return (found.truth == 1 + right)[found.known].astype(float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = ("gpt", "imported", "vectors", "student", "classifier")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--gpt")
    parser.add_argument("--steps", type=int, default=500, help="updates of the first GPT, where no folder holds one")
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--movie")
    parser.add_argument("--epochs", type=int, default=1, help="of MiniLM, where no folder holds one")
    parser.add_argument("--updates", type=int, default=150, help="of the distilled GPT")
    parser.add_argument("--student-epochs", type=int, default=8, help="of the distilled classifier")
    parser.add_argument("--characters", type=int, default=2000)
    parser.add_argument("--json")
    a = parser.parse_args()
    torch.set_num_threads(1)
    before = json.loads(Path(a.json).read_text(encoding="utf-8"))["rows"] if a.json and Path(a.json).exists() else {}
    rows: dict[str, Any] = dict(before)
    texts = held_out(a.characters)
    gpt, movie = str(RECIPES / "gpt-books.yaml"), str(RECIPES / "minilm-movie.yaml")
    with tempfile.TemporaryDirectory() as place:
        for part in a.only:
            if part in ("gpt", "student"):
                model, seconds = taught(gpt, 0, a.gpt, [f"train.steps={a.steps}"])
                about = {"cpu_seconds": seconds, "updates": learned(model)["steps"]}
            if part == "gpt":
                rows[part] = integers(model, texts, 128) | {"trained": about}
            elif part == "imported":
                rows[part] = integers(imported(a.model), texts, 32) | {"model": a.model}
            elif part == "vectors":
                rows[part] = vectors("all-MiniLM-L6-v2")
            elif part == "student":
                rows[part] = student(model, texts, a.updates, Path(place)) | {"teacher_trained": about}
            else:
                model, seconds = taught(movie, 0, a.movie, [f"train.epochs={a.epochs}"])
                rows[part] = classifier(model, a.student_epochs) | {"teacher_cpu_seconds": seconds}
            finish("language-smaller", rows, a.json)


if __name__ == "__main__":
    main()
