"""What is said about images that are brought to a checkpoint's size."""

import pytest

from vit_gelu.data import ImageData
from vit_gelu.data.following import both_or_neither, enlarged, how_resized


def normalization(channels):
    return (0.5,) * channels, (0.25,) * channels


@pytest.mark.parametrize(
    ("size", "larger", "words"),
    [
        ((16, 16), True, "images: enlarged from 8x8 to 16x16"),
        ((16, 24), False, "images: resized from 8x8 to 16x24"),
        ((4, 4), False, "images: SHRUNK from 8x8 to 4x4, the checkpoint's size: detail is lost"),
        ((4, 16), False, "images: SHRUNK from 8x8 to 4x16"),
    ],
)
def test_what_is_said_is_what_happens(size, larger, words):
    assert enlarged((8, 8), size) is larger
    data = ImageData(name="digits")
    line, numbers = data.follow(size, normalization)
    assert line.startswith(words)
    assert line == how_resized((8, 8), size)
    assert numbers == "mean [0.5], std [0.25]: the checkpoint's"
    assert data.image_size == size
    assert data.source.image_size == ((8, 8) if larger else size)


def test_nothing_is_said_where_nothing_happens():
    assert len(ImageData(name="digits").follow((8, 8), normalization)) == 1
    asked = ImageData(name="digits", image_size=8)
    assert len(asked.follow((4, 4), normalization)) == 1
    assert asked.image_size == (8, 8)


def test_mean_and_std_go_together():
    with pytest.raises(
        ValueError, match=r"--data.std: with a checkpoint give --data.mean as well, or neither"
    ):
        both_or_neither(None, [0.2], [0.5], [0.25])
    assert both_or_neither([0.1], [0.2], [0.5], [0.25])[:2] == ([0.1], [0.2])
