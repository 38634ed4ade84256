"""Batches from image files: the same as from memory, with and without worker processes."""

import itertools

import pytest
import torch
from PIL import Image

from vit_gelu.data.arrays import ImageArrays, ImageFiles
from vit_gelu.data.loader import EvalLoader, TrainLoader
from vit_gelu.data.policies import build_policy

N, SIZE = 19, (12, 10)
NORMALISE = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The same images as files (PNG keeps every level) and as arrays."""
    folder = tmp_path_factory.mktemp("pictures")
    images = torch.randint(0, 256, (N, 3, *SIZE), generator=torch.Generator().manual_seed(0)).byte()
    labels = torch.arange(N) % 4
    paths = tuple(folder / f"{i}.png" for i in range(N))
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return ImageFiles(paths, labels, 3, SIZE), ImageArrays(images, labels)


def train_loader(images, num_workers=0):
    policy = build_policy("random_crop(2), flip")
    return TrainLoader(
        images,
        global_batch_size=4,
        seed=1,
        augment=policy,
        num_classes=4,
        mixup=0.5,
        num_workers=num_workers,
        **NORMALISE,
    )


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_files_give_what_arrays_give(pictures, num_workers):
    files, arrays = pictures
    from_files, from_arrays = train_loader(files, num_workers), train_loader(arrays)
    state = torch.get_rng_state()
    for _ in range(2):
        assert_same(list(from_files), list(from_arrays))
    assert torch.equal(torch.get_rng_state(), state)
    evaluation = {"batch_size": 6, **NORMALISE}
    assert_same(
        EvalLoader(files, num_workers=num_workers, **evaluation), list(EvalLoader(arrays, **evaluation))
    )


def test_workers_that_decode_ahead_do_not_move_the_position(pictures):
    files, arrays = pictures
    expected = list(train_loader(arrays))
    first = train_loader(files, num_workers=2)
    assert_same(itertools.islice(first, 2), expected[:2])
    state = first.state_dict()
    assert state["next_batch"] == 2
    second = train_loader(files, num_workers=2)
    second.load_state_dict(state)
    assert_same(second, expected[2:])
    # The interrupted loader's workers are in the middle of a pass; a new one starts clean.
    first.set_epoch(1)
    fresh = train_loader(arrays)
    fresh.set_epoch(1)
    assert_same(first, list(fresh))


def test_more_ranks_than_files_give_empty_batches(pictures):
    files, _ = pictures
    one = ImageFiles(files.paths[:1], files.labels[:1], 3, SIZE)
    (batch,) = EvalLoader(one, batch_size=2, rank=1, world=2, **NORMALISE)
    assert batch.images.shape == (0, 3, *SIZE)
    assert batch.targets.shape == (0,)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(("damage", "error"), [("missing", FileNotFoundError), ("no image", ValueError)])
def test_bad_files_are_named_in_a_line(pictures, tmp_path, num_workers, damage, error):
    files, _ = pictures
    bad = tmp_path / "bad.png"
    if damage == "no image":
        bad.write_bytes(b"not a picture")
    some = ImageFiles((*files.paths[:3], bad), files.labels[:4], 3, SIZE)
    with pytest.raises(error, match=r"bad\.png") as caught:
        list(EvalLoader(some, batch_size=4, num_workers=num_workers, **NORMALISE))
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
