"""The fusion `film`: what some inputs say changes the features of another's positions."""

import numpy as np
import pytest
import torch

import luban
from luban.errors import Unsupported
from luban.nn.film import FiLM
from luban.nn.tokens import Encoder, Span, Tokens


class Seen(Encoder):
    size, length, placeless = 6, 4, True


class Said(Encoder):
    size, length = 5, None


def tokens(count: int = 3, seed: int = 0) -> list[Tokens]:
    g = torch.Generator().manual_seed(seed)
    x, words = torch.randn(count, 4, 6, generator=g), torch.randn(count, 3, 5, generator=g)
    real = torch.arange(3) < torch.tensor([[3], [2], [1]])[:count]
    spans = (Span("picture", 0, 4, (2, 2)),)
    return [Tokens(x, torch.ones(count, 4, dtype=torch.bool), spans), Tokens(words, real, (Span("word", 0, 3, (3,)),))]


def film(**settings) -> FiLM:
    torch.manual_seed(0)
    return FiLM([Seen(), Said()], width=16, **settings).eval()


def test_what_is_said_changes_what_is_seen_example_by_example():
    net, (seen, said) = film(), tokens()
    whole = net([seen, said])
    assert whole.x.shape == (3, 1, net.size) and bool(whole.mask.all())
    other = net([seen, said._replace(x=said.x.flip(0), mask=said.mask.flip(0))])
    assert not torch.allclose(whole.x[0], other.x[0])
    torch.testing.assert_close(whole.x[1], other.x[1])  # the middle one was told the same
    torch.testing.assert_close(net([Tokens(seen.x[:1], seen.mask[:1], seen.spans), Tokens(said.x[:1], said.mask[:1], said.spans)]).x, whole.x[:1])  # fmt: skip


def test_a_picture_is_looked_at_wherever_it_stands():
    """Planted fault: always the first input."""

    class Map(Seen):
        mapped = True

    net, (seen, said) = film(), tokens()
    turned = FiLM([Said(), Map()], width=16).eval()
    turned.load_state_dict(net.state_dict())
    torch.testing.assert_close(turned([said, seen]).x, net([seen, said]).x)
    turned.at = 0
    with pytest.raises(RuntimeError):
        turned([said, seen])


def test_a_place_matters():
    net, (seen, said) = film(), tokens()
    turned = net([seen._replace(x=seen.x.flip(1)), said])
    assert not torch.allclose(net([seen, said]).x, turned.x)


def test_padding_changes_nothing():
    net, (seen, said) = film(), tokens()
    seen = seen._replace(spans=(Span("text", 0, 4, (4,)),))
    longer = Tokens(torch.cat([seen.x, torch.full((3, 2, 6), 9.0)], 1), torch.cat([seen.mask, torch.zeros(3, 2, dtype=torch.bool)], 1), seen.spans)  # fmt: skip
    torch.testing.assert_close(net([longer, said]).x, net([seen, said]).x)
    nothing = net([seen._replace(mask=torch.zeros(3, 4, dtype=torch.bool)), said])
    assert bool(nothing.x.isfinite().all())


def test_one_input_alone_is_refused():
    with pytest.raises(Unsupported) as e:
        FiLM([Seen()])
    assert e.value.id == "film.alone"


def test_it_learns_to_look_where_a_question_points():
    """A number stands at each of four places, the question names one. Neither the numbers nor the question know the answer."""
    net, head = film(dropout=0.0).train(), torch.nn.Linear(16, 1)
    adam = torch.optim.Adam([*net.parameters(), *head.parameters()], 0.01)
    g = torch.Generator().manual_seed(0)
    right = []
    for _ in range(300):
        x, at = torch.randn(64, 4, 6, generator=g), torch.randint(4, (64,), generator=g)
        words = torch.eye(5)[at][:, None]
        truth = (x[torch.arange(64), at, 0] > 0).float()
        seen = Tokens(x, torch.ones(64, 4, dtype=torch.bool), (Span("picture", 0, 4, (2, 2)),))
        answer = head(net([seen, Tokens(words, torch.ones(64, 1, dtype=torch.bool))]).x[:, 0])[:, 0]
        adam.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(answer, truth).backward()
        adam.step()
        right.append(float(((answer > 0) == truth.bool()).float().mean()))
    assert np.mean(right[-20:]) > 0.8


def model_and_rows(place):
    rng = np.random.default_rng(0)
    rows = [
        {"picture": rng.integers(0, 255, (8, 8, 3), np.uint8), "question": ["left", "right"][i % 2], "answer": "ab"[i % 3 == 0]}
        for i in range(40)
    ]  # fmt: skip
    asked = {"types": {"picture": "image", "question": "text"}, "set": ["fusion=film"], "size": "nano", "epochs": 1}
    return luban.train(rows, "answer", evaluate=False, out=place, **asked), rows


def test_in_a_recipe(tmp_path):
    model, rows = model_and_rows(tmp_path / "m")
    asked = [{k: r[k] for k in ("picture", "question")} for r in rows]
    assert luban.load(str(tmp_path / "m")).predict(asked) == model.predict(asked)


@pytest.mark.slow
def test_as_a_file_it_takes_every_size_of_batch(tmp_path):
    model, rows = model_and_rows(tmp_path / "m")
    assert model.export(out=tmp_path / "m.onnx", data=rows)  # its gate tries several
