"""Made pictures beside real ones, seen by a network that learned to tell real ones apart.

Frechet distance (Heusel et al. 2017): |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)) between mean and covariance of the features of
two sets. It depends on whose features they are, so the judge is named, and on how many rows there are, so it stands beside the
distance between two halves of real rows. What N pictures are: uint8 (N, C, H, W).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.columns.examples import Examples
from luban.columns.image import shown
from luban.errors import RequestError, problem
from luban.generation.drawing import png, tiled
from luban.messages import say
from luban.nn.tokens import Batch
from luban.training.random import rng, seed_torch

WIDE, FEATURES = 32, 64  # channels of the first map of a judge taught here; features that it gives
BATCH, RATE = 128, 2e-3
TURNS = 4  # quarter turns that a judge is to tell where rows have no classes


class Moments(NamedTuple):
    mean: np.ndarray  # (D,)
    covariance: np.ndarray  # (D, D)


def moments(features: np.ndarray) -> Moments:
    """Of features (N, D)."""
    return Moments(features.mean(0), np.cov(features, rowvar=False))


def frechet(a: Moments, b: Moments) -> float:
    root = _root(a.covariance)
    values = np.linalg.eigvalsh(root @ b.covariance @ root)
    trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(values.clip(0)).sum()
    return float(max(0.0, ((a.mean - b.mean) ** 2).sum() + trace))


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


class Learned(nn.Module):
    """A small CNN taught on the spot on training pictures: to tell their classes (`of`: the column that holds them), or by how many
    quarter turns a picture was turned where there are none (Gidaris et al. 2018).
    """

    def __init__(self, column: Any, of: str | None, classes: int, seed: int = 0):
        super().__init__()
        self.of, self.seed, self.taught = of, seed, False
        layers, last = [], column.size
        with torch.random.fork_rng(devices=[]):
            seed_torch(seed, "judge")
            for width in (WIDE, 2 * WIDE):
                layers += [nn.Conv2d(last, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
                last = width
            self.maps = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
            self.last = nn.Sequential(nn.Linear(last * 16, FEATURES), nn.ReLU())
            self.out = nn.Linear(FEATURES, classes if of else TURNS)

    @property
    def name(self) -> str:
        return say("judge.classes", column=self.of) if self.of else say("judge.turns")

    def learn(self, examples: Examples, name: str, visits: int) -> None:
        """See so many rows of `examples`, each as often as any other. Randomness elsewhere is left as it was."""
        pictures, codes = examples.targets[name], examples.inputs[self.of] if self.of else None
        device = next(self.parameters()).device
        optimizer = torch.optim.AdamW(self.parameters(), RATE)
        steps = max(1, visits // BATCH)
        self.train()
        with torch.enable_grad():
            for step in range(steps):
                rows = rng(self.seed, "judge", step).integers(0, len(examples), BATCH)
                x = torch.as_tensor(np.ascontiguousarray(pictures[rows]), device=device)
                if codes is not None:
                    y = torch.as_tensor(np.asarray(codes[rows], np.int64), device=device)
                else:
                    x, y = turned(x, torch.arange(BATCH, device=device) % TURNS)
                for group in optimizer.param_groups:
                    group["lr"] = RATE * (1 - step / steps)
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(self(x), y).backward()
                optimizer.step()
        self.taught = True
        self.eval()

    def forward(self, pictures: Tensor) -> Tensor:
        return self.out(self._seen(pictures))

    def _seen(self, pictures: Tensor) -> Tensor:
        x = pictures.float() / 127.5 - 1
        return self.last(self.maps(x.contiguous(memory_format=torch.channels_last)))

    @torch.inference_mode()
    def features(self, pictures: np.ndarray) -> np.ndarray:
        """(N, D) float64."""
        return _by_parts(self._seen, pictures, next(self.parameters()).device)

    @torch.inference_mode()
    def classes(self, pictures: np.ndarray) -> np.ndarray | None:
        """The class that it sees in each picture, as codes of the column (N,); None where it knows none."""
        if self.of is None:
            return None
        return _by_parts(self, pictures, next(self.parameters()).device).argmax(1)


def turned(x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    """Each picture turned by so many quarters, where it is square; else halves of it twice as often."""
    square = x.shape[2] == x.shape[3]
    turns = turns if square else turns % 2 * 2
    return torch.stack([torch.rot90(p, int(t), (1, 2)) for p, t in zip(x, turns.tolist())]), turns


def _by_parts(function: Any, pictures: np.ndarray, device: Any) -> np.ndarray:
    parts = [pictures[i : i + 500] for i in range(0, len(pictures), 500)]
    found = [function(torch.as_tensor(np.ascontiguousarray(p), device=device)).double().cpu().numpy() for p in parts]
    return np.concatenate(found)


class Saved:
    """A saved model with one picture as input and a class as answer. Raises RequestError for another."""

    def __init__(self, folder: str, column: Any, labels: list[str] | None):
        from luban.bundle import Bundle

        bundle = Bundle.load(folder)
        pictures = [n for n in bundle.inputs if bundle.columns[n].form == "grid"]
        classes = [n for n in bundle.outputs if bundle.columns[n].form == "index"]
        if len(bundle.inputs) != 1 or not pictures or not classes or not hasattr(bundle.network, "fusion"):
            raise RequestError(problem("judge.no_judge", place="judge", folder=folder))
        self.bundle, self.input, self.output = bundle, pictures[0], classes[0]
        self.name, self.labels = say("judge.saved", folder=folder), labels
        self.own = bundle.columns[classes[0]].labels

    @torch.inference_mode()
    def features(self, pictures: np.ndarray) -> np.ndarray:
        """What its head reads, (N, D) float64."""
        network = self.bundle.network
        return self._over(pictures, lambda batch: network.fusion(network.tokens(batch)).x[:, 0])

    @torch.inference_mode()
    def classes(self, pictures: np.ndarray) -> np.ndarray | None:
        """Codes of the column whose labels were asked for; 0 for a class that it does not have."""
        if self.labels is None:
            return None
        column = self.bundle.columns[self.output]
        raw = self._over(pictures, lambda batch: self.bundle.network(batch)[self.output])
        codes = np.array([self.labels.index(o) + 1 if o in self.labels else 0 for o in self.own])
        return codes[column.probabilities(raw).argmax(1)]

    def _over(self, pictures: np.ndarray, function: Any) -> np.ndarray:
        column, found = self.bundle.columns[self.input], []
        self.bundle.network.eval()
        for start in range(0, len(pictures), 500):
            part = pictures[start : start + 500].transpose(0, 2, 3, 1)
            part = part[..., 0] if part.shape[3] == 1 else part
            pair = tuple(map(torch.as_tensor, column.collate(column.encode_all(np.ascontiguousarray(part)))))
            found.append(function(Batch({self.input: pair}, {}, len(part))).double().cpu().numpy())
        return np.concatenate(found)


@torch.inference_mode()
def made_by(network: Any, examples: Examples, rows: np.ndarray, plan: Any = None) -> np.ndarray:
    """Pictures that a network makes for some rows, each from the noise of its row."""
    was, found = network.training, []
    network.eval()
    for start in range(0, len(rows), 250):
        batch = Batch.of(examples.arrays(rows[start : start + 250]), plan.device if plan else "cpu")
        found.append(shown(network(batch)[network.drawn].cpu().numpy()))
    network.train(was)
    return np.concatenate(found)


def grid(pictures: np.ndarray, across: int) -> bytes:
    """A PNG of pictures (N, C, H, W) side by side."""
    return png(tiled([p.transpose(1, 2, 0) if len(p) > 1 else p[0] for p in pictures], across))
