"""A rival: transformers' Trainer on texts of different lengths, causal language modelling. It does not use Luban.

    python -m benchmarks.language.hf_trainer TABLE.csv --column long [--folder GPT2] [--rows 2000] [--json FILE]

Two runs of one epoch from the same weights, real (not padded) tokens per CPU-second of the process:

| side | what it is |
|---|---|
| default | `TrainingArguments` as they come: batches of 8, random order, padded to the longest of the batch |
| best | what its documentation offers: texts of like length together, bf16 where a trial is faster, fused AdamW, no progress bar, no checkpoints |

`--folder` names a GPT-2 checkpoint to fine-tune; without it a GPT-2 of 10 million parameters is made (byte-level BPE of 4,096 pieces learnt on
the same texts), and saved where `--save` says, so that others can start from the same weights. Loss on the rows held out is the quality column.
Tokenising happens before the clock starts.

Frozen since 25 November 2026: whoever compares with this may change its arguments, not this file.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

END, PAD = "<|endoftext|>", "<|padding|>"
LONGEST = 512  # tokens


def texts_of(path: str, column: str, rows: int) -> list[str]:
    csv.field_size_limit(sys.maxsize)
    with open(path, encoding="utf-8", newline="") as file:
        return [row[column] for row, _ in zip(csv.DictReader(file), range(rows))]


def made(texts: list[str], seed: int) -> tuple[Any, Any]:
    """A GPT-2 of 10 million parameters with random weights, and its tokenizer."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=4096, min_frequency=2, special_tokens=[END, PAD], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=END, pad_token=PAD)
    torch.manual_seed(seed)
    sizes = {"n_layer": 7, "n_head": 5, "n_embd": 320, "n_positions": LONGEST}
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, **ends)), tokenizer


def loaded(folder: str) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(folder), tokenizer


def faster_in_bf16(model: Any, batch: dict[str, torch.Tensor]) -> bool:
    seconds = {}
    for bf16 in (False, True):
        trial = copy.deepcopy(model)
        for i in range(2):
            started = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                trial(**batch).loss.backward()
            seconds[bf16] = time.process_time() - started if i else 0.0
    return seconds[True] < 0.97 * seconds[False]


def run(model: Any, tokenizer: Any, train: list[dict], held: list[dict], best: bool, seed: int) -> dict[str, Any]:
    model = copy.deepcopy(model)
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    more: dict[str, Any] = {}
    if best:
        more = {"train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused", "save_strategy": "no"}
        more |= {"logging_strategy": "no", "disable_tqdm": True, "bf16": faster_in_bf16(model, collate(train[:8]))}
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(folder, num_train_epochs=1, seed=seed, report_to="none", use_cpu=True, **more)
        trainer = Trainer(model, settings, collate, train_dataset=train, eval_dataset=held)
        started = time.process_time()
        trainer.train()
        seconds = time.process_time() - started
        loss = trainer.evaluate()["eval_loss"]
    tokens = sum(len(row["input_ids"]) for row in train)
    return {
        "tokens_per_s": tokens / seconds,
        "validation_loss": loss,
        "tokens": tokens,
        "cpu_seconds": seconds,
        "settings": more,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table")
    parser.add_argument("--column", required=True)
    parser.add_argument("--folder")
    parser.add_argument("--save")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--json")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    transformers.logging.set_verbosity_error()
    texts = texts_of(a.table, a.column, a.rows)
    cut = len(texts) * 9 // 10
    model, tokenizer = loaded(a.folder) if a.folder else made(texts[:cut], a.seed)
    if a.save:
        model.save_pretrained(a.save), tokenizer.save_pretrained(a.save)
    ids = [tokenizer(text + END, truncation=True, max_length=LONGEST)["input_ids"] for text in texts]
    rows = [{"input_ids": i} for i in ids]
    found = {
        side: run(model, tokenizer, rows[:cut], rows[cut:], side == "best", a.seed) for side in ("default", "best")
    }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    result = {**found, "parameters": model.num_parameters(), "rows": cut, "threads": a.threads, **versions}
    print(json.dumps(result, indent=1))
    if a.json:
        Path(a.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
