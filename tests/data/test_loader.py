"""Loaders: order, sharding, resuming, the hash, exact evaluation, mixing."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vit_gelu import randomness
from vit_gelu.data.arrays import ImageArrays
from vit_gelu.data.batch import Normalize
from vit_gelu.data.loader import EvalLoader, TrainLoader
from vit_gelu.data.policies import build_policy

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def make_images(n=41, size=6, classes=5):
    g = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=g)
    return ImageArrays(images, torch.randint(0, classes, (n,), generator=g))


def make_loader(images=None, policy="none", **options):
    settings = {"global_batch_size": 8, "seed": 3, "mean": MEAN, "std": STD, "num_classes": 5, **options}
    return TrainLoader(images or make_images(), augment=build_policy(policy), **settings)


def indices_of(loader):
    return [batch.indices.tolist() for batch in loader]


def test_batches_show_the_images_that_their_indices_name():
    images = make_images()
    loader = make_loader(images)
    assert len(loader) == 5
    for batch in loader:
        assert batch.images.dtype == torch.float32
        for image, target, index in zip(*batch, strict=True):
            assert target == images.labels[index]
            for c in range(3):
                expected = (images.images[index, c] / 255 - MEAN[c]) / STD[c]
                torch.testing.assert_close(image[c], expected, rtol=1e-5, atol=1e-5)


def test_memory_layout_changes_nothing_and_is_kept():
    images = make_images()
    last = ImageArrays(images.images.contiguous(memory_format=torch.channels_last), images.labels)
    loader = make_loader(last, policy="crop_flip")
    assert loader._fetch._stored.data_ptr() == last.images.data_ptr()
    for batch, other in zip(loader, make_loader(images, policy="crop_flip"), strict=True):
        assert torch.equal(batch.images, other.images)
        assert batch.images.is_contiguous()


def test_order_is_the_documented_permutation_and_the_rest_is_left_out():
    loader = make_loader()
    for epoch in range(3):
        loader.set_epoch(epoch)
        expected = torch.randperm(41, generator=randomness.generator(3, "order", epoch))[:40]
        assert torch.tensor(indices_of(loader)).flatten().equal(expected)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_ranks_share_each_global_batch_and_the_hash(world):
    alone = indices_of(make_loader())
    loaders = [make_loader(rank=rank, world=world) for rank in range(world)]
    shares = [indices_of(loader) for loader in loaders]
    for step, batch in enumerate(alone):
        assert list(itertools.chain.from_iterable(share[step] for share in shares)) == batch
    whole = make_loader()
    list(whole)
    assert {loader.order_hash for loader in loaders} == {whole.order_hash}


def test_order_hash_chains_over_what_was_handed_out():
    loader = make_loader()
    expected = b""
    assert loader.order_hash == ""
    for epoch in range(2):
        loader.set_epoch(epoch)
        for batch in loader:
            packed = b"".join(int(i).to_bytes(8, "little") for i in batch.indices)
            expected = hashlib.blake2b(expected + packed, digest_size=16).digest()
            assert loader.order_hash == expected.hex()


@pytest.mark.parametrize("stop", range(11))
def test_resumes_after_any_batch(stop):
    options = {"policy": "crop_alternating_flip", "mixup": 0.8, "cutmix": 1.0}

    def run(loader, batches):
        out = []
        while len(out) < batches:
            out.extend(itertools.islice(loader, batches - len(out)))
        return out

    whole = make_loader(**options)
    expected = run(whole, 11)
    first = make_loader(**options)
    run(first, stop)
    second = make_loader(**options)
    second.load_state_dict(first.state_dict())
    rest = run(second, 11 - stop)
    assert second.order_hash == whole.order_hash
    assert second.state_dict() == whole.state_dict()
    for got, want in zip(rest, expected[stop:], strict=True):
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


def test_resuming_another_run_is_refused():
    state = make_loader().state_dict()
    for options, words in (
        ({"seed": 4}, "--seed was 3 .* is 4"),
        ({"global_batch_size": 10}, "--data.global_batch_size was 8 .* is 10"),
        ({"images": make_images(50)}, "the number of training images was 41 .* is 50"),
    ):
        with pytest.raises(ValueError, match=f"cannot resume: {words}"):
            make_loader(**options).load_state_dict(state)


def test_set_epoch_keeps_the_position_only_within_the_epoch():
    loader = make_loader()
    iterator = iter(loader)
    loader.set_epoch(2)  # after iter, before the first batch: as Lightning does
    first = next(iterator).indices.tolist()
    loader.set_epoch(2)
    assert loader.next_batch == 1
    loader.set_epoch(3)
    assert loader.next_batch == 0
    fresh = make_loader()
    fresh.set_epoch(2)
    assert indices_of(fresh)[0] == first


@pytest.mark.parametrize("at_once", [2, 3, 7])
def test_preparing_several_batches_together_changes_none_of_them(at_once):
    options = {"policy": "randaugment", "mixup": 0.8, "cutmix": 1.0, "images": make_images(n=90, size=16)}
    alone, together = make_loader(**options), make_loader(**options)
    assert alone._steps_at_once == 1
    together._steps_at_once = at_once
    for _ in range(2):
        for one, other in zip(alone, together, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
            assert alone.state_dict() == together.state_dict()
    rest = make_loader(**options)
    rest._steps_at_once = at_once
    batches = iter(together)
    for _ in range(4):
        next(batches)
    rest.load_state_dict(together.state_dict())
    for one, other in zip(batches, rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"global_batch_size": 8}, 1024),
        ({"global_batch_size": 16, "world": 2}, 1024),
        ({"global_batch_size": 8, "upsample": (64, 64)}, 256),
        ({"global_batch_size": 9}, 910),
        ({"global_batch_size": 9, "cutmix": 1.0}, 1),  # the ninth has no partner
    ],
)
def test_how_many_batches_a_gpu_prepares_together(options, expected):
    images = make_images(n=20, size=32)
    loader = make_loader(images, **options)
    loader._device = torch.device("cuda")
    assert loader._plan_steps(images, loader.global_batch_size // loader.world) == expected


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("until", [(0, 0), (0, 2), (1, 4), (2, 0)])
def test_images_are_mixed_until_then(at_once, until):
    """Five batches an epoch: mixed ones as of a loader that always mixes, the others as of one that never does."""
    options = {"policy": "crop_flip", "images": make_images(size=16)}
    mixing, plain = make_loader(mixup=0.8, **options), make_loader(**options)
    loader = make_loader(mixup=0.8, mixed_until=until, **options)
    loader._steps_at_once = at_once
    for epoch in range(3):
        batches = zip(mixing, plain, loader, strict=True)
        for i, (mixed, unmixed, got) in enumerate(batches):
            wanted = mixed if (epoch, i) < until else unmixed
            assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
            if (epoch, i) == (1, 1):  # goes on so from its state
                resumed = make_loader(mixup=0.8, mixed_until=until, **options)
                resumed.load_state_dict(loader.state_dict())
        if epoch == 1:
            again = list(resumed)
            assert again[-1].targets.ndim == got.targets.ndim
            assert torch.equal(again[-1].images, got.images)


def test_repeat_order_is_epoch_0_for_ever():
    loader = make_loader(repeat_order=True)
    epochs = [indices_of(loader) for _ in range(3)]
    assert epochs[0] == epochs[1] == epochs[2] == indices_of(make_loader())


def test_augmentation_depends_on_epoch_and_sample_not_on_ranks():
    alone = make_loader(policy="crop_flip", mixup=0.8, cutmix=1.0)
    ranks = [make_loader(policy="crop_flip", mixup=0.8, cutmix=1.0, rank=r, world=2) for r in (0, 1)]
    for whole, *halves in zip(alone, *ranks, strict=True):
        for position in range(3):
            assert torch.equal(whole[position], torch.cat([half[position] for half in halves]))


def test_global_torch_random_state_is_untouched():
    before = torch.get_rng_state()
    list(make_loader(policy="crop_flip", mixup=1.0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("size", "world", "words"),
    [
        (0, 1, "is 0: it must be at least 1"),
        (42, 1, "is 42, but there are only 41 training images: at most 41"),
        (48, 4, "is 48, but there are only 41 training images: at most 40"),
        (10, 4, "is 10, which does not divide by 4 devices: try 8"),
        (11, 4, "is 11, which does not divide by 4 devices: try 12"),
        (3, 4, "is 3, which does not divide by 4 devices: try 4"),
    ],
)
def test_impossible_global_batch_sizes(size, world, words):
    with pytest.raises(ValueError, match=f"--data.global_batch_size {words}"):
        make_loader(global_batch_size=size, world=world)


def test_evaluation_is_exact_for_every_split_over_ranks():
    images = make_images(40)
    for n, world, size in itertools.product(range(1, 24), range(1, 6), (1, 2, 3, 7, 30)):
        part = ImageArrays(images.images[:n], images.labels[:n])
        ranks = [
            EvalLoader(part, batch_size=size, mean=MEAN, std=STD, rank=r, world=world) for r in range(world)
        ]
        shown = [indices_of(rank) for rank in ranks]
        for r, batches in enumerate(shown):
            assert list(itertools.chain.from_iterable(batches)) == list(range(r, n, world))
            assert len(batches) == len(shown[0]) == len(ranks[r])
            assert all(len(batch) <= max(size, 2) for batch in batches)
            assert all(batches) or n < world


def test_evaluation_batches_hold_images_and_labels():
    images = make_images(11)
    batches = list(EvalLoader(images, batch_size=4, mean=MEAN, std=STD))
    assert [len(batch.targets) for batch in batches] == [4, 4, 3]
    assert torch.cat([batch.targets for batch in batches]).equal(images.labels)
    expected = (images.images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(torch.cat([b.images for b in batches]), expected, rtol=1e-5, atol=1e-5)


def test_empty_evaluation_batch_size_is_refused():
    with pytest.raises(ValueError, match=r"--data\.eval_batch_size is 0"):
        EvalLoader(make_images(), batch_size=0, mean=MEAN, std=STD)


def test_normalize_equals_torchvision():
    from torchvision.transforms.v2 import functional as F

    images = make_images().images
    expected = F.normalize(F.to_dtype(images, torch.float32, scale=True), list(MEAN), list(STD))
    torch.testing.assert_close(Normalize(MEAN, STD)(images), expected, rtol=1e-5, atol=2e-6)


def test_upsampled_batches_are_pillows():
    from PIL import Image

    images = make_images()
    images.images.div_(2, rounding_mode="floor").add_(64)  # Pillow clips between its two passes, too
    size = images.images.shape[-1]
    larger = (3 * size, 3 * size)
    (batch,) = EvalLoader(images, batch_size=64, mean=(0.0,) * 3, std=(1.0,) * 3, upsample=larger)
    for ours, image in zip(batch.images, images.images, strict=True):
        pil = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(larger, Image.Resampling.BICUBIC)
        theirs = torch.from_numpy(np.array(pil)).permute(2, 0, 1)
        # Pillow rounds to whole levels after each of its two passes.
        assert (255 * ours - theirs).abs().max() <= 1.2


def test_upsampling_comes_after_augmentation():
    options = {"policy": "crop_flip", "mean": (0.0,) * 3, "std": (1.0,) * 3}
    small, large = next(iter(make_loader(**options))), next(iter(make_loader(upsample=(24, 24), **options)))
    expected = F.interpolate(small.images, (24, 24), mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(large.images, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("policy", ["crop_flip", "imagenet_strong", "color_jitter(hue=0.1), affine"])
def test_batches_on_a_gpu_equal_those_on_the_cpu_without_waiting(policy):
    options = {"images": make_images(64, 32), "policy": policy, "mixup": 0.8, "cutmix": 1.0}
    here, there = make_loader(**options), make_loader(device="cuda", **options)
    batches = iter(there)
    shown = [next(batches)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        shown.extend(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(here, shown, strict=True):
        assert torch.equal(ours.indices, theirs.indices.cpu())
        torch.testing.assert_close(theirs.targets.cpu(), ours.targets, rtol=0, atol=1e-5)
        # A level is 1 / 255 / std; sampling may fall on either side of a tie.
        apart = (theirs.images.cpu() - ours.images).abs() > 2.5 / 255 / min(STD)
        assert apart.float().mean() < 0.01
    assert here.order_hash == there.order_hash
