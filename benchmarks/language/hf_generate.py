"""A rival: transformers' `generate` on a given GPT-2 folder, batches of 1 and 8. It does not use Luban.

    python -m benchmarks.language.hf_generate FOLDER [--new 128] [--prompt 32] [--json FILE]

Greedy, no end token, so that every side makes the same number of tokens; prompts are random ids, equally long, from the seed. Rows: `default`
(as `from_pretrained` gives the model) and `best` (the fastest of what the documentation offers, by a trial of each: dynamic or static cache, fp32 or bf16). Each is
the median of `--repeats` after a warm-up, in new tokens per CPU-second of the process. `ids` is a hash of the tokens, for comparing with others
that decode the same weights; `weight_bytes` is what has to be read from memory for every step at least.

Frozen since 25 November 2026: whoever compares with this may change its arguments, not this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from transformers import AutoModelForCausalLM


def prompts(batch: int, length: int, vocabulary: int, seed: int) -> torch.Tensor:  # (B, T)
    return torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


def speed(model: Any, ids: torch.Tensor, new: int, repeats: int, **more: Any) -> tuple[float, torch.Tensor]:
    """New tokens a CPU-second, and all tokens (B, T)."""
    settings = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0, **more}
    mask = torch.ones_like(ids)
    model.generate(ids, attention_mask=mask, **{**settings, "max_new_tokens": 4, "min_new_tokens": 4})
    found = []
    for _ in range(repeats):
        started = time.process_time()
        out = model.generate(ids, attention_mask=mask, **settings)
        found.append(ids.shape[0] * new / (time.process_time() - started))
    return statistics.median(found), out


def sides(folder: str, ids: torch.Tensor, new: int, repeats: int) -> dict[str, Any]:
    """`default`, and the fastest of the documented ways by a third of the tokens."""
    ways = [(dtype, cache) for dtype in ("float32", "bfloat16") for cache in (None, "static")]
    trials = {}
    for dtype, cache in ways:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        trials[dtype, cache] = speed(
            model, ids, max(new // 3, 1), 1, **({"cache_implementation": cache} if cache else {})
        )[0]
    best = max(trials, key=trials.get)
    found = {}
    for side, (dtype, cache) in {"default": (None, None), "best": best}.items():
        more = {"dtype": getattr(torch, dtype)} if dtype else {}
        model = AutoModelForCausalLM.from_pretrained(folder, **more).eval()
        tokens_per_s, out = speed(model, ids, new, repeats, **({"cache_implementation": cache} if cache else {}))
        found[side] = {
            "tokens_per_s": tokens_per_s,
            "dtype": str(model.dtype).removeprefix("torch."),
            "cache": cache or "dynamic",
            "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
            "ids": hashlib.sha256(out.numpy().tobytes()).hexdigest()[:16],
        }
    return {**found, "trials": {f"{dtype}, {cache or 'dynamic'}": rate for (dtype, cache), rate in trials.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--json")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    transformers.logging.set_verbosity_error()
    vocabulary = AutoModelForCausalLM.from_pretrained(a.folder).config.vocab_size
    with torch.inference_mode():
        found = {
            f"batch {b}": sides(a.folder, prompts(b, a.prompt, vocabulary, a.seed), a.new, a.repeats) for b in (1, 8)
        }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    result = {**found, "new": a.new, "prompt": a.prompt, "threads": a.threads, **versions}
    print(json.dumps(result, indent=1))
    if a.json:
        Path(a.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
