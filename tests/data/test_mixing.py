"""Mixup and CutMix: the papers' distributions, pixels counted, labels to match."""

import math

import pytest
import torch
from scipy import stats

from vit_gelu.data.mixing import Mixing, box_side

H, W, CLASSES = 12, 20, 6


def marked_batch(n):
    """Images whose every pixel is the sample's own number, from 1: what is shown can be counted."""
    images = torch.arange(1.0, n + 1).view(n, 1, 1, 1).expand(n, 3, H, W).clone()
    return images, torch.arange(n) % CLASSES, torch.arange(n) * 3 + 1


def mix(mixing, n=400, **run):
    images, labels, indices = marked_batch(n)
    mixed, targets = mixing(images, labels, indices, **{"seed": 4, "epoch": 1, **run})
    return mixed, targets, labels


def partner(i):
    return i + 1 if i % 2 == 0 else i - 1


def test_cutmix_labels_are_the_shares_of_the_pixels():
    mixed, targets, labels = mix(Mixing(CLASSES, cutmix=1.0))
    shares = []
    for i in range(400):
        own, other = mixed[i] == i + 1, mixed[i] == partner(i) + 1
        assert (own | other).all()  # the very pixels, none in between
        assert torch.equal(own[0], own[1])
        share = own.double().mean().item()
        expected = torch.zeros(CLASSES)
        expected[labels[i]] += share
        expected[labels[partner(i)]] += 1 - share
        torch.testing.assert_close(targets[i], expected, rtol=0, atol=1e-6)
        rows, columns = other[0].any(1), other[0].any(0)
        assert torch.equal(other[0], rows[:, None] & columns[None, :])  # one rectangle
        for line in (rows, columns):
            assert (line.int().diff() == 1).sum() + line[0].int() <= 1
        shares.append(share)
    assert min(shares) < 0.5
    assert max(shares) == 1.0


def test_mixup_blends_images_and_labels_with_one_weight():
    mixed, targets, labels = mix(Mixing(CLASSES, mixup=0.4))
    for i in range(400):
        weight = (mixed[i, 0, 0, 0].item() - (partner(i) + 1)) / (i - partner(i))
        assert -1e-4 <= weight <= 1 + 1e-4
        assert (mixed[i] - mixed[i, 0, 0, 0]).abs().max() == 0
        expected = torch.zeros(CLASSES)
        expected[labels[i]] += weight
        expected[labels[partner(i)]] += 1 - weight
        torch.testing.assert_close(targets[i], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.5])
def test_weights_follow_the_beta_distribution(alpha):
    indices = torch.arange(20_000)
    drawn = Mixing(CLASSES, mixup=alpha).draw(indices, H, W, seed=0, epoch=0)
    assert stats.kstest(drawn.blend.double().numpy(), "beta", args=(alpha, alpha)).pvalue > 1e-4
    assert torch.equal(drawn.label, drawn.blend)


def test_boxes_are_the_papers():
    # Reference: the box of the paper's code, from the same centre and lambda, in plain Python.
    u = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)).double()
    for size in (12, 33):
        inside = box_side(u[:, 0], u[:, 1], size)
        for row, (side, place) in zip(inside, u.tolist(), strict=True):
            cut, centre = int(size * side), int(place * size)
            low, high = max(centre - cut // 2, 0), min(centre + cut // 2, size)
            assert row.tolist() == [low <= x < high for x in range(size)]


def test_cut_area_before_the_border_follows_lambda():
    drawn = Mixing(CLASSES, cutmix=1.0).draw(torch.arange(40_000), 1000, 1000, seed=0, epoch=0)
    # Boxes that no border cut: their sides are 1 - lambda's root; rarer for large boxes by a known factor.
    rows = drawn.rows
    free = ~(rows[:, 0] | rows[:, -1])
    side = rows.sum(1)[free].double() / 1000
    # P(side <= s and free) = integral of 2s (1 - s) ds = s^2 - 2 s^3 / 3, normalised by its value at 1.
    assert stats.kstest(side.numpy(), lambda s: 3 * s**2 - 2 * s**3).pvalue > 1e-4


def test_both_on_takes_each_for_half_of_the_pairs():
    drawn = Mixing(CLASSES, mixup=0.8, cutmix=1.0).draw(torch.arange(20_000), H, W, seed=0, epoch=0)
    cut = (drawn.blend == 1.0).double().mean().item()
    assert abs(cut - 0.5) < 4 * math.sqrt(0.25 / 10_000)
    assert not drawn.rows[drawn.blend < 1].any()


def test_odd_last_sample_stays():
    mixed, targets, labels = mix(Mixing(CLASSES, mixup=1.0), n=7)
    assert (mixed[6] == 7).all()
    assert torch.equal(targets[6], torch.nn.functional.one_hot(labels[6], CLASSES).float())
    mixed, targets, _ = mix(Mixing(CLASSES, mixup=1.0, cutmix=1.0), n=1)
    assert (mixed == 1).all()
    assert targets.sum() == 1


def test_mixing_depends_on_seed_epoch_and_pair_alone():
    mixing = Mixing(CLASSES, mixup=0.8, cutmix=1.0)
    whole, targets, _ = mix(mixing, n=24)
    for low, high in ((0, 8), (8, 24)):
        images, labels, indices = (part[low:high] for part in marked_batch(24))
        part, part_targets = mixing(images, labels, indices, seed=4, epoch=1)
        assert torch.equal(part, whole[low:high])
        assert torch.equal(part_targets, targets[low:high])
    for other in ({"seed": 5}, {"epoch": 2}):
        assert not torch.equal(mix(mixing, n=24, **other)[0], whole)


def test_soft_targets_are_distributions():
    for mixing in (Mixing(CLASSES, 0.2), Mixing(CLASSES, 0, 0.5), Mixing(CLASSES, 1, 1)):
        _, targets, _ = mix(mixing)
        assert targets.dtype == torch.float32
        assert (targets >= 0).all()
        torch.testing.assert_close(targets.sum(1), torch.ones(400), rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("option", ["mixup", "cutmix"])
def test_impossible_parameters(option, value):
    with pytest.raises(ValueError, match=rf"--data\.{option} is .*must be 0 \(off\) or a positive number"):
        Mixing(CLASSES, **{option: value})


def test_nothing_waits_for_the_device():
    # Tensors on the meta device have no values: whatever had to look at one would raise.
    images, labels = torch.empty(8, 3, H, W, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
    mixed, targets = Mixing(CLASSES, 0.8, 1.0)(images, labels, torch.arange(8), seed=0, epoch=0)
    assert mixed.shape == images.shape
    assert targets.shape == (8, CLASSES)
