"""Crops, flips and policies: against torchvision on one image, purity, the ways to write a policy."""

import math

import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms.v2 import functional as F

from vit_gelu.data.augment import Draw
from vit_gelu.data.geometry import AlternatingFlip, Flip, RandomCrop
from vit_gelu.data.mixing import Mixing
from vit_gelu.data.policies import OPERATIONS, PRESETS, build_policy, parse_operation

N = 48


@pytest.fixture(autouse=True)
def _one_thread():
    """Thousands of calls on single small images: threads would cost more than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_images(n=N, channels=3, height=32, width=32, seed=0):
    """Smooth pictures, so that interpolation matters but does not dominate; one is flat."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (n, channels, 6, 6), generator=g).float()
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255).byte()
    fine[0] = 77
    fine[1, :, : height // 2] = 200
    return fine


def draw_for(operation, n=N, epoch=2, seed=5):
    return Draw(seed, epoch, operation.name, torch.arange(100, 100 + n))


def one_by_one(images, function):
    return torch.stack([function(image, i) for i, image in enumerate(images)])


# -- crops and flips ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (20, 28)])
@pytest.mark.parametrize(
    ("text", "mode", "fill"),
    [
        ("random_crop(4)", "reflect", 0),
        ("random_crop(3, edge)", "edge", 0),
        ("random_crop(5, constant, 9)", "constant", 9),
    ],
)
def test_random_crop_is_pad_and_crop(text, mode, fill, size):
    images = make_images(height=size[0], width=size[1])
    crop = parse_operation(text)
    draw = draw_for(crop)
    shifts = crop.shifts(draw)

    def expected(image, i):
        padded = F.pad(image, [crop.padding] * 4, fill=fill, padding_mode=mode)
        return F.crop(padded, *shifts[i].tolist(), *size)

    assert torch.equal(crop(images, draw), one_by_one(images, expected))


def test_constant_crop_fills_with_the_mean_colour():
    images = make_images()
    crop = RandomCrop(4, "constant", "mean")
    out, shifts = crop(images, draw_for(crop)), crop.shifts(draw_for(crop))
    i = int((shifts[:, 0] < 2).nonzero()[0])
    for c in range(3):
        assert abs(out[i, c, 0, 0].item() - images[i, c].double().mean().item()) <= 0.51


def test_crop_shifts_are_uniform_over_all_places():
    shifts = RandomCrop(2).shifts(draw_for(RandomCrop(2), 20_000))
    counts = torch.bincount(shifts[:, 0] * 5 + shifts[:, 1], minlength=25)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_flip(p):
    images, flip = make_images(), Flip(p)
    flipped = flip.flipped(draw_for(flip))
    expected = one_by_one(images, lambda image, i: F.horizontal_flip(image) if flipped[i] else image)
    assert torch.equal(flip(images, draw_for(flip)), expected)
    share = flip.flipped(draw_for(flip, 20_000)).float().mean().item()
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 20_000) + 1e-9


def test_alternating_flip_shows_both_sides_in_two_epochs():
    flip = AlternatingFlip()
    epochs = [flip.flipped(draw_for(flip, 20_000, epoch=e)) for e in range(4)]
    assert torch.equal(epochs[0], ~epochs[1])
    assert torch.equal(epochs[0], epochs[2])
    assert abs(epochs[0].float().mean().item() - 0.5) < 0.02
    other = flip.flipped(draw_for(flip, 20_000, seed=6))
    assert abs((epochs[0] == other).float().mean().item() - 0.5) < 0.02


def test_fused_remaps_equal_one_after_the_other():
    images = make_images()
    policy = build_policy("random_crop(4, constant, 7), flip, random_crop(2), random_crop(3, constant, 200)")
    indices = torch.arange(N)
    one_at_a_time = images
    for operation, label in zip(
        policy.operations, ["random_crop", "flip", "random_crop#2", "random_crop#3"], strict=True
    ):
        one_at_a_time = operation(one_at_a_time, Draw(1, 0, label, indices))
    assert torch.equal(policy(images, indices, seed=1, epoch=0), one_at_a_time)


# -- policies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_policies_are_pure_in_seed_epoch_and_sample(name):
    policy = build_policy(name, (32, 32), 3)
    images, indices = make_images(), torch.arange(N) * 7
    before = images.clone()
    whole = policy(images, indices, seed=1, epoch=4)
    assert torch.equal(images, before)
    assert whole.dtype == torch.uint8
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    shuffled = policy(images[order], indices[order], seed=1, epoch=4)
    assert torch.equal(shuffled[: N // 3], whole[order][: N // 3])
    assert torch.equal(policy(images[3:7], indices[3:7], seed=1, epoch=4), whole[3:7])
    if policy.operations:
        for other in ({"seed": 2, "epoch": 4}, {"seed": 1, "epoch": 5}):
            assert not torch.equal(policy(images, indices, **other), whole)


@pytest.mark.parametrize("name", PRESETS)
def test_spec_describes_the_whole_policy(name):
    policy = build_policy(name)
    again = build_policy(policy.spec())
    assert again.operations == policy.operations
    assert policy.name == name
    assert build_policy(", ".join(policy.spec())).operations == policy.operations


@pytest.mark.parametrize(
    "spec",
    [
        "random_crop(4, mode=constant), flip",
        "[random_crop(4, mode=constant), flip]",
        ["random_crop(4, mode=constant)", "flip"],
        "['random_crop( 4 ,mode = constant )', \"flip\"]",
        ("random_crop(padding=4,mode=constant,fill=0),flip(0.5)",),
    ],
)
def test_ways_to_write_one_policy(spec):
    assert build_policy(spec).operations == (RandomCrop(4, "constant", 0), Flip(0.5))


def test_same_operation_twice_draws_twice():
    images, indices = make_images(), torch.arange(N)
    twice = build_policy("random_crop(4), random_crop(4)")(images, indices, seed=0, epoch=0)
    once = build_policy("random_crop(4)")(images, indices, seed=0, epoch=0)
    crop = RandomCrop(4)
    assert not torch.equal(twice, crop(once, Draw(0, 0, "random_crop", indices)))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("crop_flp", "unknown policy or operation 'crop_flp'. Did you mean 'crop_flip'"),
        ("random_crop(4), flop", "unknown policy or operation 'flop'. Did you mean 'flip'"),
        ("random_crop(paddin=4)", "unknown argument of random_crop 'paddin'. Did you mean 'padding'"),
        ("random_crop(4.5)", "padding must be a whole number, not '4.5'"),
        ("flip(often)", "p must be a number, not 'often'"),
        ("flip(0.5, 1)", "one argument too many"),
        ("flip(p=0.5, 1)", "one argument too many"),
        ("flip(0.5, p=1)", "p is given twice"),
        ("alternating_flip(1)", "takes no arguments"),
        ("flip(1.5)", "p must be from 0 to 1"),
        ("flip(nan)", "p must be from 0 to 1"),
        ("random_crop(-1)", "padding must be at least 0"),
        ("random_crop(4, mirror)", "mode must be reflect, edge, constant"),
        ("random_crop(4, constant, 256)", "fill must be 0 to 255, or mean"),
        ("random_crop(4", "cannot read"),
        ("flip()()", "cannot read"),
        ("__import__('os')", "unknown policy or operation '__import__'"),
        ("affine(scale=1)", "scale must be at least 0 and below 1"),
        ("affine(interpolation=cubic)", "interpolation must be nearest or bilinear"),
        ("random_resized_crop(0)", "areas must be above 0"),
        ("erase(0.5, fill=pink)", "fill must be 0 to 255, mean or noise"),
        ("color_jitter(hue=0.6)", "hue must be from 0 to 0.5"),
        ("randaugment(2, 31)", "magnitude must be from 0 to 30"),
        ("random_crop(32)", "padding must be smaller than the image, 32x40: at most 31"),
    ],
)
def test_wrong_policies_say_what_is_wrong(spec, words):
    with pytest.raises(ValueError, match="--data.augment") as caught:  # noqa: RUF043
        build_policy(spec, (32, 40), 3)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_colour_needs_grey_or_rgb():
    for text in ("color_jitter", "randaugment", "trivialaugment"):
        with pytest.raises(ValueError, match="needs images of 1 or 3 channels, not 4"):
            build_policy(text, (32, 32), 4)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_take_grey_and_oblong_images(name):
    images = make_images(channels=1, height=20, width=28)
    out = build_policy(name, (20, 28), 1)(images, torch.arange(N), seed=0, epoch=0)
    assert out.shape == images.shape


@pytest.mark.parametrize("name", [*PRESETS, *OPERATIONS])
def test_nothing_waits_for_the_device(name):
    # Images on the meta device have no values: whatever had to look at one would raise.
    images = torch.empty(64, 3, 32, 32, dtype=torch.uint8, device="meta")
    out = build_policy(name)(images, torch.arange(64), seed=0, epoch=0)
    assert (out.shape, out.dtype, out.device) == (images.shape, images.dtype, images.device)


class No64(TorchDispatchMode):
    """The meta device has no float64, as Apple's GPUs have none."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            assert not (isinstance(t, torch.Tensor) and t.is_meta and t.dtype == torch.float64), function
        return result


@pytest.mark.parametrize("name", [*PRESETS, *OPERATIONS, "erase(fill=noise, p=1)"])
def test_a_device_without_float64_needs_none(name, monkeypatch):
    monkeypatch.setattr("vit_gelu.data.augment.has_float64", lambda device: device.type != "meta")
    images = torch.empty(16, 3, 32, 32, dtype=torch.uint8, device="meta")
    with No64():
        out = build_policy(name)(images, torch.arange(16), seed=0, epoch=0)
    assert (out.shape, out.device) == (images.shape, images.device)


def test_mixing_needs_no_float64_on_the_device():
    images, labels = (
        torch.empty(16, 3, 32, 32, device="meta"),
        torch.empty(16, dtype=torch.int64, device="meta"),
    )
    with No64():
        mixed, targets = Mixing(10, 0.8, 1.0)(images, labels, torch.arange(16), seed=0, epoch=0)
    assert mixed.device == targets.device == images.device
