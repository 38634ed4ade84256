"""``vit-gelu predict`` against a network called by hand on images decoded by Pillow alone."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax

from tests.training.helpers import in_process
from vit_gelu.cli.errors import guarded
from vit_gelu.cli.predict import main
from vit_gelu.data import load_source
from vit_gelu.training import load_network


def predict(capsys, *argv):
    """The JSON that the command prints; it must have succeeded."""
    capsys.readouterr()
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["images"]


def refusal(capsys, *argv):
    """The message of a command that must end with exit code 2 and print no prediction."""
    capsys.readouterr()
    assert guarded("vit-gelu predict", lambda: main([str(a) for a in argv])) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) <= 5
    return captured.err


def by_hand(checkpoint, pixels):
    """Probabilities of one image, uint8 (h, w, c), normalised in numpy."""
    net, card = load_network(checkpoint)
    mean, std = np.array(card["data"]["mean"]), np.array(card["data"]["std"])
    ready = ((pixels / 255 - mean) / std).transpose(2, 0, 1)
    with torch.no_grad():
        return softmax(net(torch.tensor(ready, dtype=torch.float32)[None])[0].double().numpy())


@pytest.fixture
def pictures(tmp_path):
    """RGB files of the network's own size, 16 x 24, in a tree whose sorted order is known."""
    generator = np.random.default_rng(0)
    pixels = {}
    for name in ("b.png", "a/z.bmp", "a/y.PNG", "c/d/e.tiff", "[bold]x.png", "c/a.webp"):
        file = tmp_path / "pictures" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels[str(file)] = generator.integers(0, 256, (16, 24, 3), dtype=np.uint8)
        options = {"lossless": True} if name.endswith("webp") else {}
        Image.fromarray(pixels[str(file)]).save(file, **options)
    return tmp_path / "pictures", pixels


def test_probabilities_are_those_of_the_network(rgb_checkpoint, pictures, capsys):
    folder, pixels = pictures
    found = predict(capsys, rgb_checkpoint, folder, "--batch_size", 4)
    assert [image["file"] for image in found] == [
        str(folder / name)
        for name in ("[bold]x.png", "b.png", "a/y.PNG", "a/z.bmp", "c/a.webp", "c/d/e.tiff")
    ]
    for image in found:
        expected = by_hand(rgb_checkpoint, pixels[image["file"]])
        assert [row["label"] for row in image["top"]] == np.argsort(-expected).tolist()
        assert [row["probability"] for row in image["top"]] == pytest.approx(
            np.sort(expected)[::-1], abs=1e-5
        )
        assert [row["class"] for row in image["top"]] == [f"class {row['label']}" for row in image["top"]]
        assert sum(row["probability"] for row in image["top"]) == pytest.approx(1)
    # Else the order of the images would not be tested.
    assert len({round(image["top"][0]["probability"], 4) for image in found}) == len(found)


def test_digits_are_recognised_and_colour_is_made_grey(digits_run, tmp_path, capsys):
    source = load_source("digits")
    files = []
    for i in range(20):
        grey = Image.fromarray(source.test.images[i, 0].numpy())
        files.append(tmp_path / f"{i}.png")
        (grey if i % 2 else grey.convert("RGB")).save(files[-1])
    found = predict(capsys, digits_run, *files, "--top_k", 1)
    assert [image["file"] for image in found] == [str(f) for f in files]
    for i, image in enumerate(found):
        expected = by_hand(digits_run, source.test.images[i].numpy().transpose(1, 2, 0))
        (row,) = image["top"]
        assert row["label"] == expected.argmax()
        assert row["probability"] == pytest.approx(expected.max(), abs=1e-5)
    right = sum(im["top"][0]["label"] == y for im, y in zip(found, source.test.labels.tolist(), strict=False))
    assert right >= 10


def test_other_sizes_cover_the_network_and_are_cropped(rgb_checkpoint, tmp_path, capsys):
    # Twice as wide as the network: a coloured middle, and margins that must not matter.
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 12:36] = np.random.default_rng(1).integers(0, 256, (16, 24, 3))
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    (found,) = predict(capsys, rgb_checkpoint, tmp_path / "wide.png")
    expected = by_hand(rgb_checkpoint, pixels[:, 12:36])
    assert found["top"][0]["probability"] == pytest.approx(expected.max(), abs=1e-5)


def test_few_images_have_tables_and_many_have_lines(rgb_checkpoint, pictures, capsys):
    folder, pixels = pictures
    file = folder / "[bold]x.png"
    expected = by_hand(rgb_checkpoint, pixels[str(file)])
    assert main([str(rgb_checkpoint), str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(file)
    shown = [float(line.split("%")[0]) for line in lines[1:4]]
    assert shown == pytest.approx(100 * np.sort(expected)[::-1], abs=0.006)
    assert [line.split("%")[1].strip() for line in lines[1:4]] == [
        f"class {i}" for i in np.argsort(-expected)
    ]
    assert main([str(rgb_checkpoint), str(folder), "--top_k", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("class ") >= 12
    assert "%" in out.splitlines()[0]


def test_all_files_are_tried_and_none_is_skipped_silently(rgb_checkpoint, pictures, capsys):
    folder, _ = pictures
    (folder / "a" / "x.png").write_bytes(b"no image")
    message = refusal(capsys, rgb_checkpoint, folder, "--batch_size", 2)
    assert str(folder / "a" / "x.png") in message
    whole = (folder / "b.png").read_bytes()
    for i in range(4):
        (folder / f"t{i}.png").write_bytes(whole[: len(whole) // 2])
    message = refusal(capsys, rgb_checkpoint, folder, "--batch_size", 2)
    assert "5 of 11 images cannot be read" in message
    assert "and 2 more" in message
    (folder / "notes.txt").write_text("x")
    assert "notes.txt" in refusal(capsys, rgb_checkpoint, folder / "notes.txt")


def test_files_that_are_no_images_are_named(rgb_checkpoint, pictures, capsys):
    folder, _ = pictures
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.png").write_text("x")
    assert main([str(rgb_checkpoint), str(folder), "--json"]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["images"]) == 6
    assert "notes.txt" in captured.err
    assert "hidden" not in captured.err


def test_links_that_lead_in_circles(rgb_checkpoint, pictures, capsys):
    folder, _ = pictures
    (folder / "a" / "round").symlink_to(folder, target_is_directory=True)
    assert len(predict(capsys, rgb_checkpoint, folder)) == 6


def test_mistakes(rgb_checkpoint, digits_run, pictures, tmp_path, capsys):
    folder, _ = pictures
    message = refusal(capsys, rgb_checkpoint, folder, "--top_k", 4)
    assert "--top_k 4" in message
    assert "3 classes" in message
    assert "at least 1" in refusal(capsys, rgb_checkpoint, folder, "--top_k", 0)
    assert "Did you mean --top_k?" in refusal(capsys, rgb_checkpoint, folder, "--topk=3")
    assert "Did you mean 'cpu'?" in refusal(capsys, rgb_checkpoint, folder, "--device", "cpus")
    assert "IMAGES is missing" in refusal(capsys, rgb_checkpoint)
    assert "nowhere.png: no such file" in refusal(capsys, rgb_checkpoint, tmp_path / "nowhere.png")
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refusal(capsys, rgb_checkpoint, tmp_path / "empty")
    assert "no such run folder" in refusal(capsys, tmp_path / "norun", folder)
    assert "only for a run folder" in refusal(capsys, rgb_checkpoint, folder, "--checkpoint", "best")
    assert "b.png" in refusal(capsys, folder / "b.png", folder)


def test_as_a_process(rgb_checkpoint, pictures):
    folder, pixels = pictures
    file = folder / "b.png"
    done = in_process(["predict", str(rgb_checkpoint), str(file), "--json", "--top_k", "1"])
    assert done.returncode == 0, done.stderr
    (image,) = json.loads(done.stdout)["images"]
    assert image["top"][0]["label"] == by_hand(rgb_checkpoint, pixels[str(file)]).argmax()
