"""The step of a network with a rival: the critic learns to tell real from made, then the generator to be taken for real.

Both see the same batch and the same noise. Each has its own optimiser and rate, gradient norm and check, and follows the same
schedule (Goodfellow et al. 2014; the hinge loss is Lim and Ye's, 2017).
"""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from luban import plots
from luban.columns.base import Column
from luban.evaluation.judging import Learned, frechet, grid, made_by, moments
from luban.evaluation.made_view import ACROSS, SHOWN, classes_first
from luban.messages import say
from luban.nn.networks.adversarial import real
from luban.nn.tokens import Batch
from luban.nn.vision.dcgan import LOSSES
from luban.report import Report
from luban.settings import Count, Named, NonNegative, Positive
from luban.training.state import State
from luban.training.steps import Numbers, backward, summed

JUDGED = 2000  # held-out rows that an epoch is judged on
VISITS = 30_000  # rows that the judge of a run sees
GRIDS = 5  # pictures of the run that are kept, evenly spaced


class Alternating:
    """A step with a critic, its optimiser, and the judge that says after each epoch how far the pictures are from real ones.

    `rate`: of the critic's `optimizer` (as the generator's where it is not named). The generator learns at every `every`-th batch.
    `r1` times half the squared gradient of the critic's score of real pictures is added to its loss (Mescheder et al. 2018).
    `loss`: hinge or non-saturating.
    """

    def __init__(
        self,
        network: Any,
        columns: dict[str, Column],
        seed: int = 0,
        *,
        rate: Positive | None = None,
        optimizer: Annotated[dict | str, Named("optimizers")] | None = None,
        every: Count = 1,
        loss: Literal["hinge", "non-saturating"] = "hinge",
        r1: NonNegative = 0.0,
    ):
        self.network, self.columns, self.seed = network, columns, seed
        (self.rival,) = network.rivals
        self.rate, self.optimizer, self.every, self.r1 = rate, optimizer, every, r1
        self.of_critic, self.of_generator = LOSSES[loss]
        self.judge = Learned(columns[network.drawn], *self._labels(), seed=seed)
        self.modules = {"critic": self.rival, "judge": self.judge}
        self.optimizers: dict[str, Any] = {}
        self.grids: list[list[Any]] = []  # [epoch, base64 of a PNG]
        self.expected: Any = None

    # -- one batch -------------------------------------------------------------------------------------------------------
    def begin(self, state: State) -> None:
        """A state of the critic's own beside the generator's."""
        plan = state.plan
        own: dict[str, Any] = {"rate": self.rate or plan.rate, "optimizer": self.optimizer or plan.optimizer}
        plan = replace(plan, **own, ema=0.0, freeze=[], rates={}, layer_decay=1.0)
        self.rival.to(plan.device)
        self.critic = State(self.rival, plan, 1)
        self.critic.factor, self.parameters = state.factor, list(self.rival.parameters())
        self.optimizers = {"critic": self.critic.optimizer}
        if self.critic.scaler:
            self.optimizers["scaler"] = self.critic.scaler

    def __call__(self, state: State, batch: Batch, objective: Any) -> Numbers:
        critic, known = self.critic, batch.targets[self.network.drawn][1].float()
        critic.step, critic.epoch, critic.late = state.step, state.epoch, state.late
        critic.slower, critic.ceiling = state.slower, state.ceiling
        self.rival.train()
        with state.autocast():
            made = state.network(batch)[self.network.drawn]
            losses = {"critic": (self.of_critic(*self.rival(made.detach(), batch)) * known, known)}
        if self.r1:
            losses["critic"] = (losses["critic"][0] + self.r1 / 2 * self._slope(batch) * known, known)
        numbers = critic.whole(summed(losses))
        backward(losses, numbers, scaler=critic.scaler)
        critic.update()
        state.first_bad = torch.where(state.first_bad < 0, critic.first_bad, state.first_bad)
        if state.step % self.every:
            return numbers
        for p in self.parameters:
            p.requires_grad_(False)
        with state.autocast():
            losses = {"generator": (self.of_generator(self.rival.of(made, batch)) * known, known)}
        found = state.whole(summed(losses))
        backward(losses, found, scaler=state.scaler)
        for p in self.parameters:
            p.requires_grad_(True)
        state.update()
        return numbers | found

    def _slope(self, batch: Batch) -> Tensor:
        """The squared length of the gradient of the critic's score of each real picture (B,)."""
        pictures = real(batch.targets[self.network.drawn][0]).requires_grad_(True)
        (slope,) = torch.autograd.grad(self.rival.of(pictures, batch).sum(), pictures, create_graph=True)
        return slope.square().flatten(1).sum(1)

    # -- after an epoch --------------------------------------------------------------------------------------------------
    def judged(self, run: Any) -> tuple[float, dict[str, float]]:
        """What is watched, the lower the better, and all that is told of an epoch; the network has its averaged weights.

        The Frechet distance between features of held-out pictures and of as many made for the same rows. Without held-out
        rows the latest weights are the best.
        """
        told = {k: total / max(weight, 1e-12) for k, (total, weight) in run.sums.read().items()}
        epoch = run.state.epoch + 1
        if epoch == 1 or epoch % max(1, -(-run.plan.epochs // GRIDS)) == 0 or epoch == run.plan.epochs:
            self.grids.append([epoch, self._grid(run)])
        held = run.validation
        if held is None or not len(held):
            return -float(epoch), told
        rows = np.unique(np.linspace(0, len(held) - 1, JUDGED).astype(int))
        if not self.judge.taught:
            self.judge.learn(run.training, self.network.drawn, VISITS)
        self.judge.eval()
        if self.expected is None:
            self.expected = moments(self.judge.features(held.targets[self.network.drawn][rows]))
        made = made_by(run.network, held, rows, run.plan)
        distance = frechet(self.expected, moments(self.judge.features(made)))
        return distance, told | {"frechet": distance}

    def _labels(self) -> tuple[str | None, int]:
        """The condition that a judge can be taught to recognise, and how many classes it has."""
        found = [n for names in self.network.groups for n in names if self.columns[n].form == "index"]
        return (found[0], self.columns[found[0]].size) if found else (None, 0)

    def _grid(self, run: Any) -> str:
        """Pictures for rows of every class, the same noise each time."""
        examples = run.validation if run.validation is not None and len(run.validation) else run.training
        of = self._labels()[0]
        rows = classes_first(np.asarray(examples.inputs[of]) if of else None, len(examples), SHOWN)
        return base64.b64encode(grid(made_by(run.network, examples, rows, run.plan), ACROSS)).decode()

    def page(self) -> Report:
        """The pictures that it made on the way."""
        report = Report("samples", say("gan.samples"), {"epochs": [e for e, _ in self.grids]})
        report.text(say("gan.samples_text"))
        for epoch, picture in self.grids:
            report.html(say("gan.epoch", epoch=epoch), plots.picture(picture, say("gan.epoch", epoch=epoch)), "")
        return report

    # -- what a checkpoint keeps -----------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        return {"grids": self.grids, "taught": self.judge.taught}

    def restore(self, state: dict[str, Any]) -> None:
        self.grids, self.judge.taught = [[*g] for g in state["grids"]], bool(state["taught"])
        self.critic.discard()
