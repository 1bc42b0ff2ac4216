"""Names that users bring from the trainer they know: Hugging Face's `TrainingArguments`, read as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SETTINGS = {
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "learning_rate": "rate",
    "lr": "rate",
    "per_device_train_batch_size": "batch",
    "batch_size": "batch",
    "gradient_accumulation_steps": "accumulate",
    "warmup_ratio": "warmup",
    "max_grad_norm": "clip",
    "optim": "optimizer",
    "lr_scheduler_type": "schedule",
    "early_stopping_patience": "patience",
}
VALUES = {
    "optimizer": {
        "adamw_torch": "adamw",
        "adamw_torch_fused": "adamw",
        "adamw_hf": "adamw",
        "lion_32bit": "lion",
    },
    "schedule": {
        "constant_with_warmup": "constant",
        "reduce_lr_on_plateau": "reduce-on-plateau",
        "warmup_stable_decay": "warmup-stable-decay",
        "wsd": "warmup-stable-decay",
    },
}


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a train stage by our names. A second name of a setting that stands there already is kept, to be refused."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        own = SETTINGS.get(key, key)
        own = key if own != key and (own in settings or own in result) else own
        known = VALUES.get(own, {})
        result[own] = known.get(value, value) if isinstance(value, str) else value
    if result.get("steps") == -1 and "max_steps" in settings:
        result["steps"] = 0  # theirs for "as many as the epochs have"
    return result


def stage(value: Any) -> Any:
    """A stage of a recipe with the names of `train` made ours; everything else as it is."""
    if isinstance(value, Mapping) and len(value) == 1 and isinstance(value.get("train"), Mapping):
        return {"train": renamed(value["train"])}
    return value
