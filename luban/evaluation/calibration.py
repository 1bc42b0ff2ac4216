"""Whether a confidence of 0.8 is right 8 times in 10, and the one number that mends it.

References: Guo, Pleiss, Sun, Weinberger 2017, "On Calibration of Modern Neural Networks" (expected calibration error, temperature
scaling); Bröcker and Smith 2007 (a perfectly calibrated model has an expected error above zero too: the floor).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST, MOST = 0.05, 20.0  # temperatures that are looked at


def bin_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Bin numbers (N,): equal widths over [0, 1], each bin holding its upper edge."""
    return np.clip(np.ceil(np.asarray(confidence, float) * bins).astype(int) - 1, 0, bins - 1)


def ece(confidence: Any, correct: Any, bins: int = 15) -> float:
    """Expected calibration error: mean over rows of |accuracy - confidence| of the row's bin. NaN without rows."""
    confidence, correct = np.asarray(confidence, float).ravel(), np.asarray(correct, float).ravel()
    if not confidence.size:
        return float("nan")
    gaps = np.bincount(bin_of(confidence, bins), correct - confidence, bins)
    return float(np.abs(gaps).sum() / confidence.size)


def ece_floor(confidence: Any, bins: int = 15, *, seed: int = 0, draws: int = 100) -> float:
    """The error that a perfectly calibrated model with these confidences (N,) would show on average.

    An ECE at or below it is no sign of bad calibration.
    """
    confidence = np.asarray(confidence, float).ravel()
    if not confidence.size:
        return float("nan")
    rng, groups = np.random.default_rng([seed, confidence.size]), bin_of(confidence, bins)
    found = []
    for _ in range(draws):
        correct = rng.random(confidence.size) < confidence
        found.append(np.abs(np.bincount(groups, correct - confidence, bins)).sum() / confidence.size)
    return float(np.mean(found))


@dataclass(frozen=True)
class Reliability:
    """A bin each: mean confidence and accuracy (NaN in an empty bin), and how many rows."""

    confidence: np.ndarray
    accuracy: np.ndarray
    counts: np.ndarray

    def to_json(self) -> dict[str, Any]:
        return {"confidence": self.confidence, "accuracy": self.accuracy, "counts": self.counts}


def reliability(confidence: Any, correct: Any, bins: int = 15) -> Reliability:
    """The bins of a reliability diagram (`luban.plots.reliability` draws them)."""
    confidence, correct = np.asarray(confidence, float).ravel(), np.asarray(correct, float).ravel()
    groups = bin_of(confidence, bins)
    counts = np.bincount(groups, minlength=bins)
    filled = np.where(counts > 0, counts, np.nan)
    return Reliability(
        np.bincount(groups, confidence, bins) / filled, np.bincount(groups, correct, bins) / filled, counts
    )


def log_loss(logits: np.ndarray, truth: np.ndarray, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of logits (N, K) divided by a temperature."""
    z = logits / temperature
    z = z - z.max(axis=1, keepdims=True)
    return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), truth]).mean())


def fit_temperature(logits: Any, truth: Any) -> float:
    """The temperature T that minimises the log loss of logits / T, between 0.05 and 20.

    logits (N, K), or (N,) of a single sigmoid; truth (N,), rows with -1 are left out; 1.0 without rows. Any T above zero keeps
    the order of the classes, so no answer changes. In 1 / T the loss is convex, so bisection of its slope finds the one minimum.
    """
    logits, truth = np.asarray(logits, float), np.asarray(truth, np.int64).ravel()
    if logits.ndim == 1:
        logits = np.column_stack([np.zeros_like(logits), logits])
    known = truth >= 0
    logits, truth = logits[known], truth[known]
    if not truth.size:
        return 1.0
    z = np.maximum(logits - logits.max(axis=1, keepdims=True), -1e9)
    own = z[np.arange(len(z)), truth]
    low, high = 1 / MOST, 1 / LEAST
    for _ in range(40):
        sharp = (low * high) ** 0.5
        p = np.exp(z * sharp)
        p /= p.sum(axis=1, keepdims=True)
        slope = ((p * z).sum(axis=1) - own).mean()
        low, high = (low, sharp) if slope > 0 else (sharp, high)
    return float(1 / (low * high) ** 0.5)
