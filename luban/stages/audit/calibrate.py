"""Whether a confidence can be believed, and the temperature that mends it: fitted on validation rows, kept for held-out gain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from luban import plots
from luban.evaluation import calibration
from luban.evaluation.table import Predictions
from luban.messages import say

FEWEST = 20  # rows below which no temperature is fitted


@dataclass(frozen=True)
class Calibration:
    """One output. `temperature`: the one that the model has after the audit; `kept`: it is new. Losses are held-out."""

    name: str
    confidence: np.ndarray  # (N,) of the answer, before
    correct: np.ndarray  # (N,)
    sharpened: np.ndarray  # (N,) confidence at the fitted temperature
    fitted: float | None
    temperature: float
    kept: bool
    loss: float
    loss_after: float | None
    fit_rows: int
    reason: str  # id of the sentence that says what was done and why

    def numbers(self, seed: int) -> dict[str, Any]:
        found = {
            "rows": len(self.confidence),
            "ece": calibration.ece(self.confidence, self.correct),
            "ece_floor": calibration.ece_floor(self.confidence, seed=seed),
            "log_loss": self.loss,
            "temperature": self.temperature,
            "kept": self.kept,
            "fit_rows": self.fit_rows,
            "reason": self.reason,
        }
        if self.fitted is not None:
            found |= {
                "fitted_temperature": self.fitted,
                "ece_fitted": calibration.ece(self.sharpened, self.correct),
                "log_loss_fitted": self.loss_after,
            }
        return found


def logits(raw: np.ndarray) -> np.ndarray:
    """(N, K); one logit of two labels becomes two."""
    z = np.asarray(raw, np.float64)
    return np.concatenate([np.zeros_like(z), z], axis=1) if z.shape[1] == 1 else z


def calibrated(name: str, judged: Predictions, fit: Predictions | None) -> Calibration:
    """Fit a temperature on `fit` and hold it against `judged`; without `fit` only look. Rows of unknown classes count as wrong."""
    column = judged.column
    z, truth = logits(judged.raw)[judged.known], judged.truth[judged.known] - 1
    now = float(column.state.get("temperature", 1.0))
    p = column.probabilities(judged.raw)[judged.known]
    correct = p.argmax(1) == truth
    seen = truth >= 0
    loss = calibration.log_loss(z[seen], truth[seen], now) if seen.any() else float("nan")
    fit_rows = 0 if fit is None else int((fit.known & (fit.truth > 0)).sum())
    if fit_rows < FEWEST or not seen.any():
        why = "audit.no_fit_rows" if fit is None else "audit.few_fit_rows"
        return Calibration(name, p.max(1), correct, p.max(1), None, now, False, loss, None, fit_rows, why)
    fitted = calibration.fit_temperature(logits(fit.raw)[fit.known], fit.truth[fit.known] - 1)
    after = calibration.log_loss(z[seen], truth[seen], fitted)
    kept = after < loss - 1e-6
    sharpened = np.exp(z / fitted - (z / fitted).max(1, keepdims=True))
    sharpened = (sharpened / sharpened.sum(1, keepdims=True)).max(1)
    reason = "audit.temperature_kept" if kept else "audit.temperature_left"
    return Calibration(
        name, p.max(1), correct, sharpened, fitted, fitted if kept else now, kept, loss, after, fit_rows, reason
    )


def write(report: Any, found: Calibration, seed: int) -> None:
    """Text, and a reliability diagram of what the model gave before the audit."""
    n = found.numbers(seed)
    report.heading(say("audit.calibration", name=found.name), 3)
    report.text(say("audit.ece", ece=f"{n['ece']:.4f}", floor=f"{n['ece_floor']:.4f}", rows=n["rows"]))
    values = {"rows": found.fit_rows, "loss": f"{found.loss:.4f}", "fewest": FEWEST}
    if found.fitted is not None:
        values |= {
            "temperature": f"{found.fitted:.3f}",
            "after": f"{found.loss_after:.4f}",
            "ece": f"{n['ece_fitted']:.4f}",
        }
    report.note("good" if found.kept else "info", say(found.reason, **values))
    bins = calibration.reliability(found.confidence, found.correct)
    axes = {"x_label": say("evaluate.confidence"), "y_label": say("evaluate.share_right"), "count_label": say("evaluate.rows")}  # fmt: skip
    drawn = plots.reliability(bins.confidence, bins.accuracy, bins.counts, **axes)
    caption = say("evaluate.reliability_caption", ece=f"{n['ece']:.4f}", floor=f"{n['ece_floor']:.4f}")
    report.plot(say("evaluate.reliability"), drawn, caption)
