"""Changed training images: places go where the Move says, colours and holes move nothing, and what cannot follow a turn is not asked to."""

import numpy as np
import pytest

from luban.columns import augmenting
from luban.columns.augmenting import Move, coloured, draw, erased, moved, turn_of
from luban.columns.base import Column, make
from luban.columns.examples import Examples


def image(**settings):
    return make("photo", "image", {"side": 20, "channels": 3, **settings}).supposed()


def pictures(count=40, channels=3, height=20, width=20, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, channels, height, width)).astype(np.uint8)


def still(count, **changed):
    zero = np.zeros(count, int)
    return Move(zero, zero, np.zeros(count, bool), 0.0)._replace(**changed)


def looked_up(x, change):
    """The same shift and mirror, pixel by pixel."""
    height, width = x.shape[2:]
    rows = np.clip(np.arange(height) - change.dy[:, None], 0, height - 1)
    columns = np.clip(np.arange(width) - change.dx[:, None], 0, width - 1)
    columns = np.where(change.flip[:, None], columns[:, ::-1], columns)
    return np.stack([x[i][:, rows[i]][:, :, columns[i]] for i in range(len(x))])


def test_a_shift_repeats_the_edge_and_the_mirror_comes_after():
    x, rng = pictures(height=14, width=20), np.random.default_rng(1)
    change = Move(rng.integers(-5, 6, 40), rng.integers(-5, 6, 40), rng.random(40) < 0.5, 0.3)
    assert np.array_equal(moved(x, change), looked_up(x, change))
    far = still(40, dy=np.full(40, 99))
    assert (moved(x, far) == x[:, :, :1]).all()


def test_a_quarter_turn_is_exact():
    x = pictures(3, height=9, width=9)
    turn = np.broadcast_to(np.array([[0.0, 1.0], [-1.0, 0.0]]), (3, 2, 2))
    assert np.array_equal(moved(x, still(3, turn=turn)), np.rot90(x, 3, axes=(2, 3)))


def test_points_go_where_the_move_says():
    """Planted fault: the inverse of a turn would put them elsewhere."""
    rng, side = np.random.default_rng(2), 41
    x, at = np.zeros((60, 1, side, side), np.uint8), rng.integers(14, 27, (60, 2))
    for i, (row, column) in enumerate(at):
        x[i, 0, row - 1 : row + 2, column - 1 : column + 2] = 255
    drawn = draw(60, 0.5, rng)
    change = Move(rng.integers(-4, 5, 60), rng.integers(-4, 5, 60), rng.random(60) < 0.5, 0.1, turn_of(drawn))
    centre = (side - 1) / 2
    to = lambda turn: np.einsum("bij,bj->bi", turn, at - centre) + centre + np.stack([change.dy, change.dx], 1)  # noqa: E731

    def furthest(turn):
        wanted = to(turn)
        wanted[change.flip, 1] = side - 1 - wanted[change.flip, 1]
        found = [np.argwhere(m[0]).mean(0) for m in moved(x, change)]
        return np.abs(np.array(found) - wanted).max()

    assert furthest(change.turn) < 1
    assert furthest(np.linalg.inv(change.turn)) > 3


def test_two_operations_each_and_never_stronger_than_asked():
    drawn = draw(500, 0.3, np.random.default_rng(0))
    changed = np.stack([f != (1 if n in augmenting.COLOURS else 0) for n, f in drawn._asdict().items()])
    assert (changed.sum(0) == 2).all() and (changed.mean(1) > 0.15).all()
    assert np.abs(drawn.rotate).max() == pytest.approx(0.3 * np.pi / 6)
    calm = draw(500, 0.3, np.random.default_rng(0), still=True)
    assert turn_of(calm) is None and calm.translate_x.any() and turn_of(drawn) is not None


def test_colours():
    x = pictures(4)
    neutral = draw(4, 0.0, np.random.default_rng(0))
    assert np.array_equal(coloured(x, neutral), x)
    change = lambda **f: coloured(x, neutral._replace(**{n: np.full(4, v) for n, v in f.items()}))  # noqa: E731
    assert np.array_equal(change(brightness=0.5), np.rint(x * np.float32(0.5)).astype(np.uint8))
    assert change(brightness=1.9).max() == 255
    assert np.ptp(change(saturation=0.0), axis=1).max() == 0  # grey
    flat = change(contrast=0.0)
    assert np.ptp(flat.astype(int), axis=(1, 2, 3)).max() == 0
    assert np.array_equal(
        coloured(x[:, :1], neutral._replace(saturation=np.zeros(4))), x[:, :1]
    )  # grey has no colour to lose


def test_boxes_are_erased_in_some():
    x = np.full((400, 1, 28, 28), 9, np.uint8)
    found = erased(x, 0.25, np.zeros((1, 1, 1), np.uint8), np.random.default_rng(0))
    share = (found == 0).mean((1, 2, 3))
    assert 0.18 < (share > 0).mean() < 0.32
    assert share[share > 0].min() > 0.01 and share.max() < 0.37
    assert (x == 9).all()


@pytest.mark.parametrize("settings", [{}, {"randaugment": 0.5}, {"randaugment": 1.0, "erase": 0.5}, {"erase": 1.0}])
def test_a_function_of_its_draw_alone(settings):
    column, x = image(flip=True, **settings), pictures()
    before, mask = x.copy(), np.ones(len(x), bool)
    one, two, other = (column.augment(x, mask, np.random.default_rng(s))[0] for s in (3, 3, 4))
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    assert one.dtype == np.uint8 and one.shape == x.shape and np.array_equal(x, before)


class Beside(Column):
    """A column of the photo's size that is `of:` it, as a mask would be."""

    type, form, of = "beside", "grid", "photo"

    def collate(self, items):
        return items, np.ones(len(items), bool)

    def follow(self, x, change):
        assert self.turns or change.turn is None
        return moved(x, change)


class Turning(Beside):
    turns = True


@pytest.mark.parametrize("kind", [Beside, Turning])
def test_what_is_of_an_image_goes_along(kind):
    x = pictures()
    column = image(flip=True, randaugment=0.8)
    examples = Examples({"photo": column, "m": kind("m")}, {"photo": x}, {"m": x.copy()}, np.arange(40), 40)
    for seed in range(3):
        arrays = examples.arrays(np.arange(40), np.random.default_rng(seed))
        change = column.augment(x, None, np.random.default_rng(seed))[1]
        same_place = moved(x, change) if kind.turns else arrays.targets["m"][0]
        assert np.array_equal(arrays.targets["m"][0], same_place)
        assert not np.array_equal(arrays.targets["m"][0], x)
