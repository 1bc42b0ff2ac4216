"""Does llama.cpp write what Luban writes? A language model is exported, converted to GGUF and asked in both.

    python -m benchmarks.language.llama_cpp --convert llama.cpp/convert_hf_to_gguf.py [--model FOLDER] [--json FILE]

`--convert`: the script of a llama.cpp source tree (the sdist of llama-cpp-python holds one, below vendor/); it needs the packages gguf, transformers and sentencepiece. llama.cpp
itself comes with the package xllamacpp. Without `--model` a small network of Llama's shape is trained for a minute on English books. Greedy, float32.

The converter knows tokenizers of published models by a checksum; one learned here is told to it as `gpt-2`, whose way of cutting text before the merges it has.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import luban
from benchmarks.common import finish

PROMPTS = ("The state of the", "In the beginning", "We must, 2024:", "And he said unto them")
TOLD = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, {folder!r})
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def trained(steps: int) -> Any:
    recipe = {
        "luban": 1, "data": {"rows": "english-books", "split": {"column": "part"}}, "outputs": {"text": {"text": {"vocabulary": 1024}}},
        "frame": {"pack": {"length": 128}}, "model": {"text": {"llama": {"width": 64, "layers": 3, "heads": 4, "kv_heads": 2}}},
        "stages": [{"train": {"steps": steps, "batch": 8, "tokens": 0, "patience": 0}}],
    }  # fmt: skip
    return luban.train(recipe, evaluate=False)


def converted(convert: Path, folder: Path, out: Path) -> None:
    code = TOLD.format(folder=str(convert.parent))
    words = [sys.executable, "-c", code, str(convert), str(folder), "--outtype", "f32", "--outfile", str(out)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode or not out.is_file():
        raise SystemExit(done.stderr[-3000:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--convert", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    parser.add_argument("--json")
    a = parser.parse_args()
    import xllamacpp

    bundle = luban.load(a.model) if a.model else trained(a.steps)
    work = Path(mkdtemp())
    bundle.export("huggingface", out=work / "folder")
    converted(a.convert.resolve(), work / "folder", work / "model.gguf")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = (
        str(work / "model.gguf"),
        bundle.network.window,
        1,
        False,
    )
    params.n_gpu_layers, params.cpuparams.n_threads = 0, 1
    server = xllamacpp.Server(params)
    rows = []
    for prompt in a.prompts:
        asked = {"prompt": prompt, "max_tokens": a.tokens, "temperature": 0, "top_k": 1}
        theirs = server.handle_completions(asked)
        theirs = theirs["choices"][0]["text"] if "choices" in theirs else theirs["content"]
        mine = bundle.generate(prompt, tokens=a.tokens, temperature=0)
        rows.append({"prompt": prompt, "luban": mine, "llama_cpp": theirs, "same": mine == theirs})
    finish(
        "language-llama-cpp",
        {"same": sum(r["same"] for r in rows), "of": len(rows), "parameters": bundle.parameters(), "texts": rows},
        a.json,
    )


if __name__ == "__main__":
    main()
