"""Decoding and resizing against Pillow and torchvision; damaged files are named."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from vit_gelu.data.decode import decode_image
from vit_gelu.data.resize import covering_size, resize_images

BICUBIC = transforms.InterpolationMode.BICUBIC


def picture(height, width, mode="RGB") -> Image.Image:
    """Smooth shapes with an edge, so that a shifted or mirrored crop shows."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    channels = [np.sin(7 * x + 3 * y), np.cos(9 * y), (x > y) - 0.5]
    rgb = np.stack([(127 + 120 * c).clip(0, 255).astype(np.uint8) for c in channels], -1)
    return Image.fromarray(rgb).convert(mode)


def save(path, image, **options):
    image.save(path, **options)
    return path


def tensor(image) -> torch.Tensor:
    return transforms.functional.pil_to_tensor(image)


@pytest.mark.parametrize("size", [(40, 40), (100, 40), (40, 100), (33, 71), (64, 63)])
@pytest.mark.parametrize("target", [32, 47, 64])
def test_square_equals_torchvision(tmp_path, size, target):
    image = picture(*size)
    peer = transforms.Compose([transforms.Resize(target, BICUBIC), transforms.CenterCrop(target)])
    got = decode_image(save(tmp_path / "x.png", image), (target, target))
    assert got.dtype == torch.uint8
    assert torch.equal(got, tensor(peer(image)))


@pytest.mark.parametrize("target", [(32, 48), (48, 32), (90, 20)])
def test_oblong_target_covers_and_keeps_the_centre(tmp_path, target):
    image = picture(60, 75)
    got = decode_image(save(tmp_path / "x.png", image), target)
    height, width = target
    scale = max(height / 60, width / 75)
    whole = (int(75 * scale + 1e-9), int(60 * scale + 1e-9))
    resized = image.resize(whole, Image.Resampling.BICUBIC)
    assert got.shape == (3, *target)
    assert torch.equal(got, tensor(transforms.CenterCrop(target)(resized)))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 7), (7, 3), (224, 224), (375, 500)])
@pytest.mark.parametrize("target", [(1, 1), (224, 224), (10, 300), (300, 10)])
def test_covering_size(size, target):
    got = covering_size(size, target)
    assert got[0] >= target[0]
    assert got[1] >= target[1]
    assert got[0] == target[0] or got[1] == target[1]
    scale = max(target[0] / size[0], target[1] / size[1])
    assert abs(got[0] - size[0] * scale) < 1 + 1e-6
    assert abs(got[1] - size[1] * scale) < 1 + 1e-6


@pytest.mark.parametrize("target", [(32, 32), (20, 33), (9, 9), (12, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_resize_as_files_do(tmp_path, target, channels):
    image = picture(12, 16, "RGB" if channels == 3 else "L")
    expected = decode_image(save(tmp_path / "x.png", image), target, channels)
    got = resize_images(torch.stack([tensor(image)] * 3), target)
    assert got.shape == (3, channels, *target)
    assert got.dtype == torch.uint8
    # Two implementations of one filter: fixed-point rounding may differ by one level.
    assert (got.int() - expected.int()).abs().max() <= 1


def test_resize_in_chunks_equals_whole(monkeypatch):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (7, 3, 9, 9), dtype=np.uint8))
    whole = resize_images(images, (16, 16))
    monkeypatch.setattr("vit_gelu.data.resize.CHUNK_BYTES", 2 * 3 * 16 * 16)
    assert torch.equal(resize_images(images, (16, 16)), whole)
    assert resize_images(images, (9, 9)) is images


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tif", "webp", "jpg"])
def test_formats(tmp_path, suffix):
    image = picture(24, 24)
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0}}
    path = save(tmp_path / f"x.{suffix}", image, **options.get(suffix, {}))
    got = decode_image(path, (24, 24))
    if suffix == "jpg":
        assert (got.float() - tensor(image).float()).abs().mean() < 3
    else:
        assert torch.equal(got, tensor(image))


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "CMYK", "PA"])
def test_modes(tmp_path, mode):
    image = picture(24, 24).quantize(16) if mode == "P" else picture(24, 24).convert(mode)
    path = save(tmp_path / ("x.tif" if mode in ("CMYK", "PA", "LA") else "x.png"), image)
    with Image.open(path) as opened:
        expected = tensor(opened.convert("RGB"))
    assert torch.equal(decode_image(path, (24, 24)), expected)
    assert decode_image(path, (24, 24), channels=1).shape == (1, 24, 24)


def test_palette_with_transparency(tmp_path):
    image = picture(24, 24).quantize(16)
    path = save(tmp_path / "x.png", image, transparency=bytes([0, 128] + [255] * 14))
    assert torch.equal(decode_image(path, (24, 24)), tensor(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_8_bits_are_refused(tmp_path, mode):
    path = tmp_path / "deep.tif"
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    Image.fromarray(np.full((9, 9), 300, dtype)).save(path)
    with pytest.raises(ValueError, match=r"deep.tif: mode .* has more than 8 bits per channel"):
        decode_image(path, (8, 8))


def test_upright(tmp_path):
    image = picture(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # as a phone held upright stores it: to be turned by a quarter, clockwise
    got = decode_image(save(tmp_path / "x.png", image, exif=exif), (30, 20))
    assert torch.equal(got, tensor(image.transpose(Image.Transpose.ROTATE_270)))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        decode_image(tmp_path / "none.png", (8, 8))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"BM" + b"\xff" * 60])
def test_no_image(tmp_path, content):
    (tmp_path / "no.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read the image .*no.png: ") as caught:
        decode_image(tmp_path / "no.png", (8, 8))
    assert len(str(caught.value).splitlines()) == 1


def test_too_large_to_be_honest(tmp_path, monkeypatch):
    path = save(tmp_path / "bomb.png", picture(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"cannot read the image .*bomb.png: .*decompression bomb"):
        decode_image(path, (8, 8))


# Pillow's own remarks on damaged headers, and on sizes that they claim.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "ppm"])
def test_damaged_files_never_escape_as_other_errors(tmp_path, suffix):
    buffer = io.BytesIO()
    picture(40, 40).save(buffer, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
    data = buffer.getvalue()
    path = tmp_path / f"x.{suffix}"
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(200):
        broken = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            broken[rng.integers(min(len(data), 200))] = rng.integers(256)
        path.write_bytes(broken[: rng.integers(len(data) // 2, len(data) + 1)])
        try:
            assert decode_image(path, (8, 8)).shape == (3, 8, 8)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert all(message.startswith(f"cannot read the image {path}: ") for message in messages)
