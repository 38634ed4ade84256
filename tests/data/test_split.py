"""The validation split: proportional, exact, disjoint, the same for every run."""

import itertools
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from vit_gelu.data.arrays import ImageArrays, ImageFiles
from vit_gelu.data.split import divide, seats, stratified_split


def best_seats(counts: list[int], total: int) -> set[tuple[int, ...]]:
    """All feasible allocations of ``total`` that are closest to proportional, by trying every one."""
    n = sum(counts)
    ranges = [range(int(c >= 2), c) if c else range(1) for c in counts]
    feasible = [given for given in itertools.product(*ranges) if sum(given) == total]
    cost = {
        given: sum((Fraction(c * total, n) - g) ** 2 for c, g in zip(counts, given, strict=True))
        for given in feasible
    }
    return {given for given in feasible if cost[given] == min(cost.values())}


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize(
    "counts", [[5, 5, 5], [1, 2, 9], [3, 8, 1, 4], [2, 2, 2], [12, 1], [7, 0, 3], [2, 11, 4]]
)
def test_seats_equal_the_best_of_all_allocations(counts, fraction):
    given = seats(counts, fraction)
    least, most = sum(c >= 2 for c in counts), sum(max(c - 1, 0) for c in counts)
    total = min(max(int(sum(counts) * fraction + 0.5), least), most)
    assert sum(given) == total
    assert tuple(given) in best_seats(counts, total)


def test_ties_go_to_the_lower_class():
    assert seats([10, 10, 10, 10], 0.05) == [1, 1, 1, 1]
    assert seats([15, 15, 15, 15], 0.1) == [2, 2, 1, 1]


@pytest.mark.parametrize(("n", "classes", "fraction"), [(50_000, 10, 0.1), (1437, 7, 0.1), (450, 100, 0.36)])
def test_split_counts(n, classes, fraction):
    labels = torch.arange(n)[torch.randperm(n, generator=torch.Generator().manual_seed(1))] % classes
    kept, aside = stratified_split(labels, fraction, 0)
    assert sorted(kept.tolist() + aside.tolist()) == list(range(n))
    assert kept.tolist() == sorted(kept.tolist())
    assert aside.tolist() == sorted(aside.tolist())
    assert len(aside) == round(n * fraction)
    listed = labels.tolist()
    for label in range(classes):
        whole = sum(x == label for x in listed)
        part = sum(listed[i] == label for i in aside.tolist())
        assert abs(part - whole * fraction) < 1


def test_every_class_is_represented_even_beyond_the_fraction():
    labels = torch.arange(300) % 100
    assert sorted(labels[stratified_split(labels, 0.2, 0)[1]].tolist()) == list(range(100))


def test_split_depends_on_its_seed_and_purpose_alone():
    labels = torch.arange(200) % 4
    first = stratified_split(labels, 0.1, 0, "validation")[1]
    torch.manual_seed(99)
    torch.rand(5)
    assert torch.equal(first, stratified_split(labels, 0.1, 0, "validation")[1])
    assert not torch.equal(first, stratified_split(labels, 0.1, 1, "validation")[1])
    assert not torch.equal(first, stratified_split(labels, 0.1, 0, "other")[1])


def test_published_split_never_changes():
    # Results on a validation set are comparable only while these indices stay.
    assert stratified_split(torch.arange(40) % 2, 0.1, 0, "validation")[1].tolist() == [0, 18, 23, 39]


def test_members_are_drawn_evenly():
    # Each of 20 members is set aside with probability 1/4: 400 seeds give 100 ± 5 standard deviations.
    labels = torch.zeros(20, dtype=torch.int64)
    drawn = torch.zeros(20)
    for seed in range(400):
        drawn[stratified_split(labels, 0.25, seed)[1]] += 1
    deviation = (400 * 0.25 * 0.75) ** 0.5
    assert (drawn - 100).abs().max() < 5 * deviation


def test_a_class_of_one_image_stays_in_train():
    kept, aside = stratified_split(torch.tensor([0, 1, 1, 1, 2, 2]), 0.5, 0)
    assert 0 in kept.tolist()
    assert {1, 2} == {[0, 1, 1, 1, 2, 2][i] for i in aside.tolist()}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_divide_equals_indexing(monkeypatch, channels_last, step):
    monkeypatch.setattr("vit_gelu.data.split.CHUNK_BYTES", step * 3 * 4 * 5)
    images = torch.randint(0, 256, (100, 3, 4, 5), dtype=torch.uint8)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(100) % 7
    kept, aside = stratified_split(labels, 0.3, 0)
    expected = images[kept], images[aside]
    train, val = divide(ImageArrays(images, labels), kept, aside)
    assert torch.equal(train.images, expected[0])
    assert torch.equal(val.images, expected[1])
    assert torch.equal(train.labels, labels[kept])
    assert torch.equal(val.labels, labels[aside])


def test_divide_files():
    files = ImageFiles(tuple(Path(f"{i}.png") for i in range(6)), torch.arange(6) % 2, 1, (8, 9))
    train, val = divide(files, torch.tensor([0, 2, 3, 5]), torch.tensor([1, 4]))
    assert [path.name for path in train.paths] == ["0.png", "2.png", "3.png", "5.png"]
    assert [path.name for path in val.paths] == ["1.png", "4.png"]
    assert val.labels.tolist() == [1, 0]
    assert (train.channels, train.image_size) == (1, (8, 9))
