"""The picture of a confusion matrix: what is drawn, and that it can be read."""

import itertools

import numpy as np
import pytest
from matplotlib.transforms import Bbox
from PIL import Image

from vit_gelu.cli.confusion import confusion_figure, save_confusion


def counts(k):
    generator = np.random.default_rng(k)
    return generator.integers(0, 3, (k, k)) * generator.integers(0, 2, (k, k)) + 20 * np.eye(k, dtype=int)


def drawn(k, names=None):
    figure = confusion_figure(counts(k), names or [f"a longer class name {i}" for i in range(k)], "title")
    figure.canvas.draw()
    return figure, figure.axes[0], figure.canvas.get_renderer()


def overlaps(boxes):
    return any(Bbox.intersection(a, b) for a, b in itertools.pairwise(boxes))


@pytest.mark.parametrize("k", [2, 10, 25, 26, 100, 300])
def test_labels_can_be_read(k):
    _, axes, renderer = drawn(k)
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert len(labels) == k or k > 150
        assert not overlaps([label.get_window_extent(renderer) for label in labels])
        assert all(label.get_fontsize() >= 5 for label in labels)


def test_counts_are_written_where_they_belong():
    _, axes, renderer = drawn(10)
    expected = counts(10)
    written = {tuple(map(int, text.get_position())): int(text.get_text()) for text in axes.texts}
    assert written == {
        (column, row): expected[row, column]
        for row in range(10)
        for column in range(10)
        if expected[row, column]
    }
    # Rows from top to bottom, as in the table.
    tops = [label.get_window_extent(renderer).y0 for label in axes.get_yticklabels()]
    assert tops == sorted(tops, reverse=True)


def test_counts_stay_inside_their_cells():
    k = 25
    figure = confusion_figure(np.full((k, k), 99999), [str(i) for i in range(k)], "title")
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    cell = figure.axes[0].get_window_extent(renderer).width / k
    assert max(text.get_window_extent(renderer).width for text in figure.axes[0].texts) < cell


def test_colour_is_the_share_of_the_true_class():
    matrix = np.array([[8, 2, 0], [0, 0, 0], [5, 5, 90]])
    figure = confusion_figure(matrix, ["a", "b", "c"], "title")
    image = figure.axes[0].images[0].get_array()
    assert np.allclose(image.filled(0), [[0.8, 0.2, 0], [0, 0, 0], [0.05, 0.05, 0.9]])
    assert np.array_equal(image.mask, matrix == 0)


def test_names_are_text_and_nothing_else(tmp_path):
    names = ["cost in $ per $", "a_b^c", "\\frac{", "[bold]"]
    _, axes, _ = drawn(4, names)
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    save_confusion(tmp_path / "picture.png.partial", counts(4), names, "100 % of $5")
    with Image.open(tmp_path / "picture.png.partial") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 600
