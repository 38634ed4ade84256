"""Operations that resample or recolour: against torchvision on one image, and the spread of what is drawn."""

import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from vit_gelu.data import automatic, color, warp
from vit_gelu.data.augment import Draw
from vit_gelu.data.erasing import Erase
from vit_gelu.data.policies import parse_operation

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


def assert_close_to(got, expected, *, far=0.0, step=1):
    """At most ``step`` levels apart, but for a share ``far`` of the pixels (ties in sampling)."""
    assert got.dtype == expected.dtype == torch.uint8
    assert got.shape == expected.shape
    apart = (got.int() - expected.int()).abs()
    assert (apart > step).float().mean() <= far, f"{(apart > step).float().mean():.4f} of the pixels differ"


def one_by_one(images, function):
    return torch.stack([function(image, i) for i, image in enumerate(images)])


# -- resampling ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (20, 28), (8, 8)])
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_affine_is_torchvisions(interpolation, size):
    images = make_images(height=size[0], width=size[1])
    affine = warp.Affine(30, 0.3, 20, 0.2, interpolation)
    draw = draw_for(affine)
    p = affine.parameters(draw, *size)

    def expected(image, i):
        return F.affine(
            image,
            angle=p["angle"][i].item(),
            translate=[p["x"][i].item(), p["y"][i].item()],
            scale=p["scale"][i].item(),
            shear=[p["shear"][i].item(), 0.0],
            interpolation=InterpolationMode(interpolation),
        )

    assert_close_to(affine(images, draw), one_by_one(images, expected), far=0.002)


def test_affine_parameters_cover_their_ranges():
    affine = warp.Affine(14, 0.15, 8, 0.1)
    p = affine.parameters(draw_for(affine, 20_000), 8, 16)
    for name, middle, reach in (
        ("angle", 0, 14),
        ("scale", 1, 0.15),
        ("shear", 0, 8),
        ("x", 0, 1.6),
        ("y", 0, 0.8),
    ):
        unit = (p[name].numpy() - middle + reach) / (2 * reach)
        assert stats.kstest(unit, "uniform").pvalue > 1e-4


def test_affine_fill_shows_only_outside():
    flat = torch.full((N, 3, 16, 16), 90, dtype=torch.uint8)
    affine = warp.Affine(20, 0.2, 10, 0.3, fill=90)
    assert torch.equal(affine(flat, draw_for(affine)), flat)
    assert torch.equal(warp.Affine(20, 0.2, 10, 0.3, fill="mean")(flat, draw_for(affine)), flat)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_random_resized_crop_is_torchvisions(size):
    images = make_images(height=size[0], width=size[1])
    crop = warp.RandomResizedCrop()
    draw = draw_for(crop)
    top, left, h, w = crop.windows(draw, *size)

    def expected(image, i):
        place = top[i].item(), left[i].item(), h[i].item(), w[i].item()
        return F.resized_crop(image.float(), *place, list(size), antialias=True).round().clamp(0, 255).byte()

    assert_close_to(crop(images, draw), one_by_one(images, expected))


@pytest.mark.parametrize(("ratio", "size"), [(4 / 3, (32, 32)), (4 / 3, (12, 90)), (1.0, (32, 32))])
def test_windows_are_inside_and_distributed_as_torchvisions(ratio, size):
    crop = warp.RandomResizedCrop(0.2, 1.0, ratio)
    top, left, h, w = crop.windows(draw_for(crop, 3000), *size)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= size[0]).all()
    assert (left + w <= size[1]).all()
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(size, scale=(0.2, 1.0), ratio=(1 / ratio, ratio))
    blank = torch.zeros(1, *size)
    params = [theirs.make_params([blank]) for _ in range(3000)]
    for ours, key in ((top, "top"), (left, "left"), (h, "height"), (w, "width")):
        assert stats.ks_2samp(ours.numpy(), [p[key] for p in params]).pvalue > 1e-4


# -- erasing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", [0, 128, "mean", "noise"])
def test_erase_changes_the_box_and_nothing_else(fill):
    images = make_images()
    erase = Erase(0.5, fill=fill)
    draw = draw_for(erase)
    out = erase(images, draw)
    erased, *box = erase.boxes(draw, 32, 32)
    assert 0 < erased.sum() < N
    for i in range(N):
        if not erased[i]:
            assert torch.equal(out[i], images[i])
            continue
        top, left, h, w = (part[i].item() for part in box)
        inside = out[i, :, top : top + h, left : left + w]
        assert torch.equal(out[i], F.erase(images[i], top, left, h, w, inside))
        if fill == "noise":
            assert h * w < 20 or inside.float().std() > 40
        else:
            value = images[i].double().mean((1, 2)).round() if fill == "mean" else torch.full((3,), fill)
            assert (inside == value.byte().view(3, 1, 1)).all()


def test_erasing_noise_is_the_samples_own():
    erase = Erase(1.0, fill="noise")
    images = make_images()
    whole = erase(images, draw_for(erase))
    part = erase(images[5:9], draw_for(erase).select(torch.arange(5, 9)))
    assert torch.equal(part, whole[5:9])
    levels = erase(images.new_zeros(2000, 1, 8, 8), draw_for(erase, 2000))
    counts = torch.bincount(levels[levels > 0].long(), minlength=256)[1:]
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_boxes_are_distributed_as_torchvisions():
    erase = Erase(0.7)
    erased, top, left, h, w = erase.boxes(draw_for(erase, 4000), 32, 32)
    assert abs(erased.float().mean().item() - 0.7) < 0.03
    torch.manual_seed(0)
    theirs = v2.RandomErasing(p=1.0, scale=(0.02, 1 / 3), ratio=(1 / 3.3, 3.3))
    params = [theirs.make_params([torch.zeros(3, 32, 32)]) for _ in range(3000)]
    for ours, key in ((top, "i"), (left, "j"), (h, "h"), (w, "w")):
        assert stats.ks_2samp(ours[erased].numpy(), [p[key] for p in params]).pvalue > 1e-4


# -- colour -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (color.adjust_brightness, F.adjust_brightness, 0, 2.5),
        (color.adjust_contrast, F.adjust_contrast, 0, 2.5),
        (color.adjust_saturation, F.adjust_saturation, 0, 2.5),
        (color.adjust_sharpness, F.adjust_sharpness, 0, 2.5),
        (color.adjust_hue, F.adjust_hue, -0.5, 0.5),
        (color.solarize, F.solarize, 0, 255),
    ],
)
def test_colour_operations_are_torchvisions(ours, theirs, low, high, channels):
    images = make_images(channels=channels)
    strength = torch.linspace(low, high, N, dtype=torch.float64)
    expected = one_by_one(images, lambda image, i: theirs(image, strength[i].item()))
    assert_close_to(ours(images, strength), expected)
    assert (ours(images, strength) != expected).float().mean() < 0.01


@pytest.mark.parametrize("channels", [1, 3])
def test_posterize_autocontrast_equalize_are_torchvisions(channels):
    images, bits = make_images(channels=channels), torch.arange(N) % 9
    expected = one_by_one(images, lambda image, i: F.posterize(image, bits[i].item()))
    assert torch.equal(color.posterize(images, bits), expected)
    expected = one_by_one(images, lambda image, i: F.autocontrast(image))
    assert_close_to(color.autocontrast(images), expected)
    expected = one_by_one(images, lambda image, i: F.equalize(image))
    assert torch.equal(color.equalize(images), expected)


def test_sharpness_leaves_tiny_images_alone():
    images = make_images(height=2, width=8)
    assert torch.equal(color.adjust_sharpness(images, torch.full((N,), 2.0)), images)


def test_color_jitter_is_torchvisions_in_the_drawn_order():
    jitter = color.ColorJitter(0.4, 0.5, 0.6, 0.1)
    images, draw = make_images(), draw_for(jitter)
    values, order = jitter.parameters(draw)
    functions = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)

    def expected(image, i):
        for which in order[i].tolist():
            image = functions[which](image, values[i, which].item())
        return image

    assert_close_to(jitter(images, draw), one_by_one(images, expected), step=2, far=1e-4)
    values, order = jitter.parameters(draw_for(jitter, 20_000))
    for which, (low, high) in enumerate(((0.6, 1.4), (0.5, 1.5), (0.4, 1.6), (-0.1, 0.1))):
        unit = (values[:, which].numpy() - low) / (high - low)
        assert stats.kstest(unit, "uniform").pvalue > 1e-4
    counts = torch.bincount((order * torch.tensor([64, 16, 4, 1])).sum(1))
    assert stats.chisquare(counts[counts > 0].numpy()).pvalue > 1e-4
    assert (counts > 0).sum() == 24


# -- RandAugment and TrivialAugment -------------------------------------------------------------------------

THEIR_NAMES = {
    **{name: name.title().replace("_", "") for name in automatic.NAMES},
    "autocontrast": "AutoContrast",
}


@pytest.mark.parametrize("size", [(32, 32), (20, 28)])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (automatic.RandAugment, v2.RandAugment()),
        (automatic.TrivialAugment, v2.TrivialAugmentWide()),
    ],
)
def test_strengths_are_torchvisions(ours, theirs, size):
    table = ours.strengths(*size)
    assert {THEIR_NAMES[name] for name in automatic.NAMES} == set(theirs._AUGMENTATION_SPACE)
    for row, name in zip(table, automatic.NAMES, strict=True):
        strengths, signed = theirs._AUGMENTATION_SPACE[THEIR_NAMES[name]]
        expected = strengths(31, *size)
        assert signed == (name in automatic._SIGNED)
        if expected is None:
            assert not row.any()
        elif not (ours is automatic.TrivialAugment and name.startswith("translate") and min(size) < 32):
            torch.testing.assert_close(row, expected.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("name", automatic.NAMES)
def test_named_operations_are_torchvisions(name, interpolation):
    images = make_images()
    bins = torch.arange(N) % 31
    strength = automatic.TrivialAugment.strengths(32, 32)[automatic.NAMES.index(name), bins]
    if name in automatic._SIGNED:
        strength = torch.where(torch.arange(N) % 2 == 0, strength, -strength)
    theirs = v2.RandAugment()

    def expected(image, i):
        return theirs._apply_image_or_video_transform(
            image,
            THEIR_NAMES[name],
            strength[i].item(),
            InterpolationMode(interpolation),
            {torch.Tensor: None},
        )

    which = torch.full((N,), automatic.NAMES.index(name))
    got = automatic.apply_named(images, which, strength, interpolation)
    assert_close_to(got, one_by_one(images, expected), far=0.004)


def test_mixed_operations_reach_the_right_samples():
    images, which = make_images(), torch.arange(N) % len(automatic.NAMES)
    strength = automatic.RandAugment.strengths(32, 32)[which, 20]
    together = automatic.apply_named(images, which, strength)
    alone = [
        automatic.apply_named(images[i : i + 1], which[i : i + 1], strength[i : i + 1]) for i in range(N)
    ]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("text", ["randaugment(2, 9)", "trivialaugment"])
def test_automatic_policies_choose_all_operations_equally(text, monkeypatch):
    seen = []

    def record(images, which, strength, *_):
        seen.append((which, strength))
        return images

    monkeypatch.setattr(automatic, "apply_named", record)
    operation = parse_operation(text)
    operation(torch.zeros(20_000, 3, 4, 4, dtype=torch.uint8), draw_for(operation, 20_000))
    assert len(seen) == (2 if text.startswith("rand") else 1)
    for which, strength in seen:
        assert stats.chisquare(torch.bincount(which, minlength=14).numpy()).pvalue > 1e-4
        rotations = strength[which == automatic.NAMES.index("rotate")]
        assert abs((rotations > 0).float().mean() - 0.5) < 0.06
        if text.startswith("rand"):
            assert rotations.abs().unique().tolist() == pytest.approx([9.0])
        else:
            assert len(rotations.abs().unique()) == 31


def test_box_that_never_fits_leaves_the_image():
    images, erase = make_images(height=4, width=40), Erase(1.0, 0.5, 0.6, ratio=1.0)
    assert torch.equal(erase(images, draw_for(erase)), images)
