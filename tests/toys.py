"""Fakes of every contract, each under 40 lines: if one needs more, the contract is too big."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from luban.columns.base import Column, Segments
from luban.data.frames import Framed
from luban.training.optimizers import Optimizer


# toy modality: one class and one registry line
@dataclass(frozen=True)
class DNA(Column):
    """A strand of A, C, G, T as ids 1 to 4; 0 is padding and "nothing there"."""

    type: ClassVar[str] = "dna"
    form: ClassVar[str] = "ids"
    encoder: ClassVar[str] = "cnn"
    ragged: ClassVar[bool] = True
    size: ClassVar[int] = 5

    def encode(self, value: Any, of: Any = None) -> np.ndarray:
        return np.array([("ACGT".find(c) + 1) for c in value or "A"], np.int64)

    def collate(self, items: Any) -> tuple[np.ndarray, np.ndarray]:
        x = np.zeros((len(items), max(map(len, items))), np.int64)
        for row, item in zip(x, items):
            row[: len(item)] = item
        return x, np.arange(x.shape[1]) < np.array([[len(i)] for i in items])

    def segments(self, value: Any) -> Segments:
        return Segments(list(value), np.arange(len(value)))

    def features(self, values: Any) -> Any:
        from scipy.sparse import csr_matrix

        return csr_matrix([[v.count(c) for c in "ACGT"] for v in values.to_pylist()], dtype=np.float32)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": "^[ACGT]+$"}


# toy GAN: an alternating step with a discriminator and an optimiser of its own
class Alternating:
    """Each call one update of the discriminator, then one of the generator (`state.network`)."""

    def __init__(self, real, noise: int, rate: float = 3e-3):
        self.real, self.noise, self.rate = real, noise, rate
        self.modules = {
            "discriminator": torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
        }
        self.optimizers = {"discriminator": Optimizer(self.modules["discriminator"], name="adam")}

    def __call__(self, state, batch, objective):
        critic = self.modules["discriminator"]
        random = torch.as_tensor(state.rng().normal(size=(2, batch.size, self.noise)), dtype=torch.float32)
        real = self.real(state.rng(), batch.size)
        loss = torch.nn.functional.softplus(critic(state.network(random[0]).detach())) + torch.nn.functional.softplus(
            -critic(real)
        )
        critic.zero_grad()
        loss.mean().backward()
        self.optimizers["discriminator"].update(self.rate)
        fooled = torch.nn.functional.softplus(-critic(state.network(random[1])))
        fooled.mean().backward()
        state.update()
        return {"generator": (fooled.sum().detach(), torch.tensor(float(batch.size)))}


# toy private step: every example's gradient clipped, noise on the sum (Abadi et al. 2016)
class Private:
    """Needs a separable network. `clip`: largest norm of one example's gradient; noise = multiplier x clip."""

    def __init__(self, clip: float = 1.0, multiplier: float = 1.0):
        self.clip, self.multiplier = clip, multiplier

    def __call__(self, state, batch, objective):
        assert state.network.separable
        total, numbers = torch.zeros_like(state.flat), {}
        for i in range(batch.size):
            losses = objective(state.network, batch.take(slice(i, i + 1)), state.rng())
            sum(each.sum() for each, _ in losses.values()).backward()
            total += state.flat * min(1.0, self.clip / max(float(state.flat.norm()), 1e-12))
            state.flat.zero_()
            for name, (each, weight) in losses.items():
                a, b = numbers.get(name, (0.0, 0.0))
                numbers[name] = (a + each.detach().sum(), b + weight.sum())
        noise = state.rng().normal(scale=self.multiplier * self.clip, size=len(total))
        state.flat.copy_((total + torch.as_tensor(noise, dtype=total.dtype)) / batch.size)
        state.update()
        return numbers


# toy frame: windows over time; an example is `length` rows, its answer the row `horizon` later
def window(table, rows, *, length: int = 3, horizon: int = 1, stride: int = 1) -> Framed:
    import pyarrow as pa

    starts = range(0, len(rows) - length - horizon + 1, stride)
    groups = [rows[s : s + length] for s in starts]
    later = [rows[s + length + horizon - 1] for s in starts]
    past = {f"{n}_past": pa.array([table[n].take(g).to_pylist() for g in groups]) for n in table.column_names}
    return Framed(pa.table(past | {n: table[n].take(later) for n in table.column_names}), groups)


# toy edit: a network with one of its linear layers' biases taken away
def drop_bias(network, *, module: str):
    linear = network.get_submodule(module)
    linear.bias = None
    return network
