"""Finding things in images: geometry and losses against slow references, and the whole life of both detectors."""

import numpy as np
import pytest
import torch
from torch import nn

from luban.errors import RecipeError
from luban.nn.detection import regions
from luban.nn.detection.assignment import aligned, within
from luban.nn.detection.boxes import Truth, giou, iou
from luban.nn.detection.regions import anchors, kept, level_of, proposed, roi_align, shifted, shifts
from luban.nn.detection.sampling import sampled
from luban.nn.heads.faster_rcnn import FasterRCNN
from luban.nn.heads.fcos import FCOS
from luban.nn.tokens import Pyramid
from luban.nn.vision.fpn import FPN

PYRAMID = Pyramid((6, 8, 10), ((16, 12), (8, 6), (4, 3)), (64, 48))
HEADS = {
    "fcos": (FCOS, {"width": 8}),
    "faster_rcnn": (FasterRCNN, {"width": 8, "hidden": [8], "proposals": 20, "learned": 12}),
}
heads = pytest.mark.parametrize("name", HEADS)


class Kinds:
    name, labels = "objects", ("a", "b", "c")


def head(name, **settings):
    torch.manual_seed(0)
    kind, usual = HEADS[name]
    return kind(Kinds(), PYRAMID, **usual | settings)


def maps(count=2, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(count, c, *hw, generator=random) for c, hw in zip(PYRAMID.channels, PYRAMID.sizes)]


def boxes(rng, count, side=64.0):
    corner, size = rng.uniform(0, side - 8, (count, 2)), rng.uniform(2, side / 2, (count, 2))
    return torch.from_numpy(np.concatenate([corner, corner + size], 1).astype(np.float32))


def truth(*rows):
    """x (B, M, 5), mask (B, M) of lists of boxes."""
    most = max(map(len, rows))
    x, mask = torch.zeros(len(rows), most, 5), torch.zeros(len(rows), most, dtype=torch.bool)
    for i, row in enumerate(rows):
        for j, box in enumerate(row):
            x[i, j], mask[i, j] = torch.tensor(box), True
    return x, mask


ONE = [(2.0, 10.0, 8.0, 30.0, 30.0)]


# -- boxes -------------------------------------------------------------------------------------------------------------------
def plain_iou(a, b):
    wide, high = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    inner = wide * high
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner
    return inner / union, union


def plain_giou(a, b):
    found, union = plain_iou(a, b)
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return found - (hull - union) / hull


def test_overlaps_are_those_of_the_formulas():
    a, b = (boxes(np.random.default_rng(s), 40) for s in (0, 1))
    for ours, theirs in ((iou, lambda *p: plain_iou(*p)[0]), (giou, plain_giou)):
        want = [[theirs(p, q) for q in b.tolist()] for p in a.tolist()]
        assert torch.allclose(ours(a[:, None], b), torch.tensor(want), atol=1e-5)
    assert float(iou(a, a).min()) > 0.999 and float(giou(a, a).min()) > 0.999
    empty = torch.zeros(3, 4)
    assert not iou(empty, empty).any() and giou(empty, empty).isfinite().all()


def test_shifts_come_back():
    a, b = (boxes(np.random.default_rng(s), 40) for s in (0, 1))
    assert torch.allclose(shifted(a, shifts(a, b), (128, 128)), b, atol=1e-3)
    far = shifted(a, torch.full((40, 4), 1e6), (64, 48))
    assert far.isfinite().all() and float(far[:, ::2].max()) <= 48 and float(far[:, 1::2].max()) <= 64


def test_anchors_have_their_size_and_shape():
    found = anchors(torch.tensor([[4.0, 12.0]]), torch.tensor([8.0]), 4, (0.5, 1.0, 2.0))
    wide, high = (found[:, i + 2] - found[:, i] for i in (0, 1))
    assert torch.allclose(wide * high, torch.full((3,), 32.0**2)) and torch.allclose(
        high / wide, torch.tensor([0.5, 1, 2])
    )
    assert torch.allclose((found[:, :2] + found[:, 2:]) / 2, torch.tensor([[4.0, 12.0]]))


# -- which boxes stay ----------------------------------------------------------------------------------------------------------
def greedy(found, threshold):
    stays = []
    for i in range(len(found)):
        stays.append(not any(stays[j] and plain_iou(found[j], found[i])[0] > threshold for j in range(i)))
    return stays


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_suppression_is_the_greedy_one(threshold):
    many = torch.stack([boxes(np.random.default_rng(s), 120, 24.0) for s in range(4)])
    want = [greedy(b.tolist(), threshold) for b in many]
    assert kept(many, threshold).tolist() == want
    assert kept(many, threshold, rounds=1).tolist() != want  # control: what one judgement gets wrong


def test_proposals_are_the_best_in_an_order_that_ties_do_not_change():
    points, strides = FPN(PYRAMID, "i", width=4).points()
    every = anchors(points, strides, 4, (1.0,))
    said = torch.zeros(1, len(every), 4)
    flat = torch.zeros(1, len(every))
    noise = torch.rand(1, len(every), generator=torch.Generator().manual_seed(1)) * 1e-6
    ask = lambda scores: proposed(scores, every, said, (64, 48), candidates=60, count=12, threshold=0.7)  # noqa: E731
    assert torch.equal(ask(flat), ask(flat + noise))
    peak = flat.clone()
    peak[0, 100] = 5
    assert (ask(peak) == shifted(every[100], said[0, 0], (64, 48))).all(-1).any()


# -- regions of a map ------------------------------------------------------------------------------------------------------------
def slow_align(level, side, box, cells, samples):
    """Point by point, as He et al. 2017 describe it."""
    channels, high, wide = level.shape
    x0, y0, x1, y1 = (v * n / s - 0.5 for v, n, s in zip(box, (wide, high) * 2, (side[1], side[0]) * 2))
    found = torch.zeros(channels, cells, cells)
    for p in range(cells):
        for q in range(cells):
            for i in range(samples):
                for j in range(samples):
                    y = min(max(y0 + (y1 - y0) * (p + (i + 0.5) / samples) / cells, 0), high - 1)
                    x = min(max(x0 + (x1 - x0) * (q + (j + 0.5) / samples) / cells, 0), wide - 1)
                    top, left = min(int(y), high - 2), min(int(x), wide - 2)
                    b, a = y - top, x - left
                    found[:, p, q] += (
                        (1 - b) * ((1 - a) * level[:, top, left] + a * level[:, top, left + 1])
                        + b * ((1 - a) * level[:, top + 1, left] + a * level[:, top + 1, left + 1])
                    ) / samples**2
    return found


def align_gap(fault=0.0):
    levels = maps(1)
    some = boxes(np.random.default_rng(3), 9, 48.0)[None]
    some[0, 0] = torch.tensor([0.0, 0.0, 48.0, 64.0])  # the whole image
    which = torch.tensor([[0.0, 1, 2] * 3])
    gap = 0.0
    for i in range(3):
        found = roi_align([levels[i]], (64, 48), some + fault, which * 0, 3)[0]
        for r in range(9):
            gap = max(
                gap, float((found[r] - slow_align(levels[i][0], (64, 48), some[0, r].tolist(), 3, 2)).abs().max())
            )
    same = [torch.randn(1, 5, 8, 6), torch.randn(1, 5, 4, 3)]
    mixed = roi_align(same, (64, 48), some, which.clamp(max=1), 2)
    for i in (0, 1):
        alone = roi_align([same[i]], (64, 48), some, which * 0, 2)
        mine = which.clamp(max=1) == i
        gap = max(gap, float((mixed - alone)[mine].abs().max()))
    return gap


def test_regions_are_cut_as_point_by_point():
    assert align_gap() < 1e-4
    assert align_gap(fault=4.0) > 1e-2  # control: half a position beside


def test_regions_are_read_from_the_level_of_their_size():
    sizes = torch.tensor([8.0, 63.0, 65.0, 127.0, 129.0, 500.0])
    found = torch.cat([torch.zeros(6, 2), sizes[:, None].expand(-1, 2)], 1)[None]
    assert level_of(found, [8.0, 16.0, 32.0]).tolist() == [[0, 0, 1, 1, 2, 2]]


# -- who learns what -----------------------------------------------------------------------------------------------------------
def assigned(x, mask, o=None):
    fpn = FPN(PYRAMID, "i", width=4)
    points, strides = fpn.points()
    o = (
        torch.cat([torch.cat([points - 12, points + 12], 1), torch.full((len(points), 3), -2.0)], 1)[None]
        if o is None
        else o
    )
    return aligned(o.expand(len(x), -1, -1), points, strides, Truth(x, mask), 5), points, strides


def test_a_box_is_learned_by_the_best_answers_within_it():
    x, mask = truth(ONE, [], [(1.0, 11.0, 9.0, 12.0, 10.0)])
    (_, quality), points, _ = assigned(x, mask)
    inside = ((points > torch.tensor([10.0, 8.0])) & (points < torch.tensor([30.0, 30.0]))).all(1)
    assert 1 <= int((quality[0] > 0).sum()) <= 5 and not quality[0][~inside].any()
    shared = iou(torch.cat([points - 12, points + 12], 1), torch.tensor(ONE[0][1:]))
    assert float(quality[0].max()) == pytest.approx(float((shared * inside).max()))
    assert not quality[1].any()  # nothing is there
    assert int((quality[2] > 0).sum()) >= 0 and bool(
        within(points, torch.tensor([4.0]).expand(len(points)), x[2:, :, 1:]).any()
    )


def test_a_point_of_two_boxes_learns_the_one_it_overlaps_more():
    both = [(1.0, 8.0, 8.0, 32.0, 32.0), (2.0, 0.0, 0.0, 48.0, 64.0)]
    (which, quality), points, _ = assigned(*truth(both))
    nearest = int((points - 20).square().sum(1).argmin())
    assert int(which[0, nearest]) == 0 and float(quality[0, nearest]) > 0.3


@heads
def test_the_loss_knows_crowds_missing_truth_and_empty_images(name):
    net = head(name).eval()
    base = truth(ONE, [])
    crowd = truth([*ONE, (-1.0, 30.0, 30.0, 48.0, 64.0)], [(-1.0, 0.0, 0.0, 48.0, 64.0)])
    unknown = truth([(0.0, 0, 0, 0, 0)], ONE)
    with torch.no_grad():
        plain, crowded, missing = (net.loss(net(maps(), t), *t) for t in (base, crowd, unknown))
    assert plain[1].tolist() == [1, 1] and torch.equal(plain[1], net.weigh(*base))
    assert missing[1].tolist() == [0, 1] and float(missing[0][0]) == 0
    assert float(crowded[0][1]) == 0 < float(plain[0][1])  # all of the image is a crowd
    nobody = torch.zeros(2, 0, 5), torch.zeros(2, 0, dtype=torch.bool)
    assert net.loss(net(maps(), nobody), *nobody)[1].tolist() == [1, 1]


@heads
def test_every_weight_learns_and_a_loss_falls(name):
    net = head(name)
    target = truth(ONE, [(1.0, 4.0, 30.0, 40.0, 60.0), (3.0, 30.0, 2.0, 46.0, 20.0)])
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    seen = []
    for step in range(40):
        torch.manual_seed(step)
        each, weight = net.loss(net(maps(), target), *target)
        (each.sum() / weight.sum()).backward()
        if not step:
            silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
            assert not silent
        optimizer.step()
        optimizer.zero_grad()
        seen.append(float(each.detach().sum()))
    assert np.mean(seen[-5:]) < 0.7 * np.mean(seen[:5])
    with torch.no_grad():
        label, each, weight = net.glance(net.eval()(maps()), *target)
    assert label == "iou" and float(each.sum() / weight.sum()) > 0.4


@heads
def test_an_image_answers_the_same_beside_others(name):
    net = head(name).eval()
    with torch.no_grad():
        both = net(maps(3))
        alone = net([m[1:2] for m in maps(3)])
    assert both.shape[1:] == alone.shape[1:] and both.shape[2] == 4 + 3 and both.dtype == torch.float32
    assert torch.allclose(both[1:2], alone, atol=1e-5)


@heads
def test_scores_and_divergence(name):
    net = head(name).eval()
    with torch.no_grad():
        o, other = net(maps()), net(maps(seed=1))
    answers = torch.tensor([5 * 3 + 2, 0])
    assert net.score(o, answers).tolist() == [float(o[0, 5, 6]), float(o[1, 0, 4])]
    assert float(net.divergence(o, o).abs().max()) < 1e-4 and float(net.divergence(o, other).min()) > 1e-3


def test_two_stages_answer_with_the_log_odds_of_their_softmax():
    net = head("faster_rcnn")
    logits = torch.randn(1, 4, 4)
    found = net.answer(torch.rand(1, 4, 4), logits, torch.zeros(1, 4, 4))[..., 4:].sigmoid()
    assert torch.allclose(found, logits.softmax(-1)[..., 1:], atol=1e-6)


def test_what_is_drawn_is_half_good_and_fixed_outside_training():
    good = torch.zeros(2, 40, dtype=torch.bool)
    good[0, :30], good[1, 0] = True, True
    bad = ~good
    bad[:, -4:] = False
    first, again = (sampled(good, bad, 16, drawn=False) for _ in range(2))
    assert torch.equal(first.indices, again.indices) and first.counts.sum(1).tolist() == [14, 16]
    assert first.good.sum(1).tolist() == [8, 1]
    torch.manual_seed(0)
    drawn = sampled(good, bad, 16, drawn=True)
    torch.manual_seed(0)
    assert torch.equal(drawn.indices, sampled(good, bad, 16, drawn=True).indices)
    assert not torch.equal(drawn.indices, first.indices)


# -- the pyramid ---------------------------------------------------------------------------------------------------------------
def test_levels_and_their_points():
    fpn = FPN(PYRAMID, "i", width=4, extra=1)
    assert fpn.sizes == [(16, 12), (8, 6), (4, 3), (2, 2)] and fpn.strides == [4, 8, 16, 32]
    assert [tuple(level.shape) for level in fpn(maps())] == [(2, 4, *hw) for hw in fpn.sizes]
    points, strides = fpn.points()
    assert points[0].tolist() == [2, 2] and points[-1].tolist() == [36, 48] and len(strides) == len(points)
    assert [tuple(s) for s in FPN(PYRAMID, "i", width=4, finest=8, extra=0).sizes] == [(8, 6), (4, 3)]
    assert FPN(PYRAMID, "i", width=4, extra=9).sizes[-1] == (1, 1)


def test_a_coarse_level_reaches_the_finest():
    fpn = FPN(PYRAMID, "i", width=4)
    some = maps(1)
    some[2].requires_grad_()
    fpn(some)[0].sum().backward()
    assert some[2].grad.abs().sum() > 0


def test_what_is_too_small_or_has_no_class_is_said():
    with pytest.raises(RecipeError, match="too small"):
        FPN(Pyramid((4,), ((1, 1),), (8, 8)), "photo", width=4)
    with pytest.raises(RecipeError, match="too small"):
        FPN(PYRAMID, "photo", width=4, finest=64)
    nobody = Kinds()
    nobody.labels = ()
    with pytest.raises(RecipeError, match="no class"):
        FCOS(nobody, PYRAMID, width=8)


def test_nothing_new_mixes_examples():
    norms = nn.modules.batchnorm._BatchNorm
    assert not [m for name in HEADS for m in head(name).modules() if isinstance(m, norms)]
    assert regions.ROUNDS >= 8
