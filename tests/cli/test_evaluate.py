"""``vit-gelu evaluate`` against a loop over single images and scikit-learn's metrics."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy.special import log_softmax
from sklearn import metrics

from tests.training.helpers import in_process, train
from vit_gelu.cli.errors import guarded
from vit_gelu.cli.evaluate import main
from vit_gelu.data import load_source
from vit_gelu.training import load_network


def evaluate(capsys, *argv):
    """The JSON that the command prints; it must have succeeded."""
    capsys.readouterr()
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys, *argv):
    """The message of a command that must end with exit code 2 and a few lines."""
    capsys.readouterr()
    assert guarded("vit-gelu evaluate", lambda: main([str(a) for a in argv])) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) <= 5
    return captured.err


def digits_arrays(change=None, **replaced):
    source = load_source("digits")
    arrays = {
        "class_names": np.array(source.class_names),
        "train_images": source.train.images.numpy()[:, 0],
        "train_labels": source.train.labels.numpy(),
        "test_images": source.test.images.numpy()[:, 0],
        "test_labels": source.test.labels.numpy(),
    }
    return arrays | replaced


@pytest.fixture(scope="module")
def by_hand(digits_run):
    """Labels and logits of the test digits, image by image, normalised in numpy."""
    net, card = load_network(digits_run)
    source = load_source("digits")
    pixels = source.test.images.numpy() / 255
    mean, std = np.array(card["data"]["mean"]), np.array(card["data"]["std"])
    ready = torch.tensor((pixels - mean[:, None, None]) / std[:, None, None], dtype=torch.float32)
    with torch.no_grad():
        logits = np.stack([net(image[None])[0].double().numpy() for image in ready])
    return source.test.labels.numpy(), logits


def test_counts_are_those_of_a_loop_over_single_images(digits_run, by_hand, tmp_path, capsys):
    labels, logits = by_hand
    found = evaluate(capsys, digits_run, "--out", tmp_path / "e", "--batch_size", 64)
    predicted = logits.argmax(1)
    assert found["n"] == len(labels) == 359
    assert found["correct"] == (predicted == labels).sum()
    assert found["top1"] == metrics.accuracy_score(labels, predicted)
    assert found["top5"] == pytest.approx(metrics.top_k_accuracy_score(labels, logits, k=5), abs=1e-12)
    assert found["correct5"] == metrics.top_k_accuracy_score(labels, logits, k=5, normalize=False)
    loss = -log_softmax(logits, axis=1)[np.arange(359), labels].mean()
    assert found["loss"] == pytest.approx(loss, rel=1e-5)

    expected = metrics.confusion_matrix(labels, predicted, labels=range(10))
    with (tmp_path / "e" / "confusion.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header[1:] == [row[0] for row in rows] == [str(i) for i in range(10)]
    assert np.array_equal(np.array([row[1:] for row in rows], dtype=int), expected)

    recall = metrics.recall_score(labels, predicted, average=None)
    precision = metrics.precision_score(labels, predicted, average=None, zero_division=np.nan)
    with (tmp_path / "e" / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in rows] == pytest.approx(recall)
    assert [float(row["precision"] or "nan") for row in rows] == pytest.approx(precision, nan_ok=True)
    wrong = expected - np.diag(np.diag(expected))
    assert [int(row["taken_for_n"]) for row in rows] == wrong.max(axis=1).tolist()
    assert [row["taken_for"] for row in rows] == [str(w.argmax()) if w.max() else "" for w in wrong]
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text()) == found
    with Image.open(tmp_path / "e" / "confusion.png") as picture:
        picture.verify()


@pytest.mark.parametrize(("split", "which"), [("test", "last"), ("val", "last"), ("val", "best")])
def test_repeats_the_numbers_of_the_record(digits_run, tmp_path, capsys, split, which):
    found = evaluate(capsys, digits_run, "--out", tmp_path / "e", "--split", split, "--checkpoint", which)
    record = json.loads((digits_run / "record.json").read_text())
    if which == "best":
        assert found["top1"] == record["best"]["val_top1"]
        return
    assert {k: found[k] for k in ("n", "correct", "top1")} == {
        k: record[split][k] for k in ("n", "correct", "top1")
    }
    assert found["loss"] == pytest.approx(record[split]["loss"], rel=1e-6)
    assert found["dataset"]["same_as_training"] is True
    assert found["dataset"]["note"] is None


def test_a_run_on_upsampled_images_repeats_its_numbers(tmp_path, capsys):
    record = train(tmp_path / "run", data__upsample=16, trainer__max_epochs=1)
    _, card = load_network(tmp_path / "run")
    assert card["network"]["image_size"] == [16, 16]
    assert card["data"]["upsampled_from"] == [8, 8]
    again = evaluate(capsys, tmp_path / "run", "--split", "test", "--out", tmp_path / "out")
    assert again["correct"] == record["test"]["correct"]
    assert again["loss"] == pytest.approx(record["test"]["loss"], rel=1e-5)


@pytest.mark.parametrize("size", ["4", "[16, 24]"])
def test_upsampling_enlarges_and_keeps_proportions(tmp_path, size):
    with pytest.raises(ValueError, match=r"--data\.upsample .* must enlarge images of 8 × 8"):
        train(tmp_path / "run", data__upsample=size)
    assert not (tmp_path / "run").exists()


def test_screen_and_default_folder(digits_run, tmp_path, capsys):
    run = shutil.copytree(digits_run, tmp_path / "run")
    assert main([str(run)]) == 0
    out = capsys.readouterr().out
    record = json.loads((run / "record.json").read_text())
    assert f"top-1 {100 * record['test']['top1']:.2f} %" in out
    assert f"({record['test']['correct']} of 359 images)" in out
    folder = run / "evaluation-digits-test-last"
    assert {p.name for p in folder.iterdir()} == {
        "confusion.csv", "confusion.png", "evaluation.json", "per_class.csv"
    }  # fmt: skip
    # Worst first: the accuracies in the table rise.
    rows = [line.split() for line in out.split("class  accuracy")[1].splitlines()[1:11]]
    shares = [float(row[1]) for row in rows]
    assert shares == sorted(shares)
    assert sorted(row[0] for row in rows) == [str(i) for i in range(10)]
    per_class = json.loads((folder / "evaluation.json").read_text())["per_class"]
    assert {row[0]: int(row[2]) for row in rows} == {r["class"]: r["correct"] for r in per_class}

    before = {p: p.read_bytes() for p in folder.iterdir()}
    message = refusal(capsys, run)
    assert "holds an evaluation already" in message
    assert "--overwrite" in message
    assert {p: p.read_bytes() for p in folder.iterdir()} == before
    (folder / "evaluation.json").write_text("stale")
    (folder / "mine.txt").write_text("kept")
    assert evaluate(capsys, run, "--overwrite")["n"] == 359
    assert json.loads((folder / "evaluation.json").read_text())["n"] == 359
    assert (folder / "mine.txt").read_text() == "kept"


def test_a_checkpoint_by_itself(digits_run, tmp_path, capsys):
    file = shutil.copy(digits_run / "checkpoints" / "last.ckpt", tmp_path / "mine.ckpt")
    found = evaluate(capsys, file)
    record = json.loads((digits_run / "record.json").read_text())
    assert found["correct"] == record["test"]["correct"]
    assert (tmp_path / "evaluation-digits-test-mine" / "confusion.png").is_file()


def test_another_data_set_is_normalised_as_in_training(digits_run, by_hand, tmp_path, capsys):
    labels, logits = by_hand
    # Test images alone as train images: another mean and deviation, which must not be used.
    keep = np.concatenate([np.flatnonzero(labels == c)[:12] for c in range(10)])
    source = load_source("digits")
    images = source.test.images.numpy()[:, 0]
    arrays = digits_arrays(
        train_images=np.full((20, 8, 8), 255, np.uint8), train_labels=np.repeat(np.arange(10), 2),
        test_images=images[keep], test_labels=labels[keep],
    )  # fmt: skip
    np.savez(tmp_path / "some.npz", **arrays)
    capsys.readouterr()
    assert (
        main(
            [
                str(digits_run),
                "--data.name",
                str(tmp_path / "some.npz"),
                "--out",
                str(tmp_path / "e"),
                "--json",
            ]
        )
        == 0
    )
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["correct"] == (logits.argmax(1) == labels)[keep].sum()
    assert found["dataset"]["name"] == "some"
    assert found["dataset"]["same_as_training"] is False
    assert captured.err.startswith("warning: ")
    assert len(captured.err.splitlines()) == 1
    assert "is not the data of the training" in captured.err
    assert found["dataset"]["note"] in captured.err


def test_the_same_name_with_another_split_is_said(digits_run, tmp_path, capsys):
    run = shutil.copytree(digits_run, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["val_fraction"] = 0.3
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    capsys.readouterr()
    assert main([str(run), "--json"]) == 0
    captured = capsys.readouterr()
    assert "digits here is not the digits of the training" in captured.err
    assert json.loads(captured.out)["dataset"]["same_as_training"] is False


def test_precision_is_that_of_the_run_unless_asked_otherwise(digits_run, tmp_path, capsys):
    run = shutil.copytree(digits_run, tmp_path / "run")
    exact = evaluate(capsys, run, "--out", tmp_path / "a")
    record = json.loads((run / "record.json").read_text())
    record["env"]["precision"] = "bf16-mixed"
    (run / "record.json").write_text(json.dumps(record))
    mixed = evaluate(capsys, run, "--out", tmp_path / "b")
    again = evaluate(capsys, run, "--out", tmp_path / "c", "--precision", "32-true")
    assert (exact["precision"], mixed["precision"]) == ("32-true", "bf16-mixed")
    (run / "record.json").unlink()
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["precision"] = "bf16-mixed"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert evaluate(capsys, run, "--out", tmp_path / "d")["loss"] == mixed["loss"]
    assert again["loss"] == exact["loss"] != mixed["loss"]
    assert mixed["loss"] == pytest.approx(exact["loss"], rel=0.02)


def test_a_class_without_images_has_no_accuracy(digits_run, tmp_path, capsys):
    source = load_source("digits")
    some = source.test.labels.numpy() != 4
    arrays = digits_arrays(
        test_images=source.test.images.numpy()[some, 0], test_labels=source.test.labels.numpy()[some]
    )
    np.savez(tmp_path / "d.npz", **arrays)
    found = evaluate(capsys, digits_run, "--data.name", tmp_path / "d.npz", "--out", tmp_path / "e")
    assert found["per_class"][4]["n"] == 0
    assert found["per_class"][4]["accuracy"] is None
    assert main([str(digits_run), "--data.name", str(tmp_path / "d.npz"), "--out", str(tmp_path / "f")]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("4 "))
    assert row.split()[1] == "–"


def test_image_files_are_read_at_the_size_of_the_network(rgb_checkpoint, tmp_path, capsys):
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in range(3):
            place = tmp_path / "pictures" / part / f"class {label}"
            place.mkdir(parents=True)
            for i in range(3):
                Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(
                    place / f"{i}.png"
                )
    found = evaluate(
        capsys, rgb_checkpoint, "--data.name", tmp_path / "pictures", "--data.root", tmp_path,
        "--out", tmp_path / "e",
    )  # fmt: skip
    assert found["n"] == 9
    assert [row["n"] for row in found["per_class"]] == [3, 3, 3]
    assert found["correct5"] == 9  # three classes: top-5 is top-3


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"class_names": np.array([*"0123", "vier", *"56789"])}, "class 4 is 'vier'"),
        ({"test_images": np.zeros((359, 8, 8, 3), np.uint8), "train_images": np.ones((1294, 8, 8, 3), np.uint8)},
         "RGB; the network was trained on grey"),
        ({"test_images": np.zeros((359, 9, 8), np.uint8), "train_images": np.ones((1294, 9, 8), np.uint8)},
         "9 × 8; the network takes 8 × 8: add --resize"),
    ],
)  # fmt: skip
def test_data_that_do_not_fit_are_refused(digits_run, tmp_path, capsys, change, expected):
    np.savez(tmp_path / "d.npz", **digits_arrays(**change))
    out = tmp_path / "e"
    message = refusal(capsys, digits_run, "--data.name", tmp_path / "d.npz", "--out", out)
    assert expected in message
    assert "--data.name" in message
    assert not out.exists()


def test_more_classes_are_refused_and_resizing_is_possible(digits_run, tmp_path, capsys):
    arrays = digits_arrays(class_names=np.array([str(i) for i in range(11)]))
    arrays["train_labels"] = arrays["train_labels"].copy()
    arrays["train_labels"][0] = 10
    np.savez(tmp_path / "eleven.npz", **arrays)
    message = refusal(capsys, digits_run, "--data.name", tmp_path / "eleven.npz")
    assert "has 11 classes" in message
    assert "which has 10" in message
    big = digits_arrays()
    for part in ("train", "test"):
        big[f"{part}_images"] = big[f"{part}_images"].repeat(2, axis=1).repeat(2, axis=2)
    np.savez(tmp_path / "big.npz", **big)
    where = ["--data.name", tmp_path / "big.npz", "--out", tmp_path / "e"]
    assert "16 × 16" in refusal(capsys, digits_run, *where)
    assert evaluate(capsys, digits_run, *where, "--resize")["top1"] > 0.3


def test_mistakes(digits_run, tmp_path, capsys, monkeypatch):
    out = ["--out", tmp_path / "e"]
    assert "Did you mean --data.name?" in refusal(capsys, digits_run, "--data.nam", "digits")
    assert "Did you mean --batch_size?" in refusal(capsys, digits_run, "--batch-size", "3")
    assert "Did you mean 'test'?" in refusal(capsys, digits_run, "--split", "tset")
    assert "at least 1" in refusal(capsys, digits_run, "--batch_size", "0")
    assert "--batch_size" in refusal(capsys, digits_run, "--batch_size", "many")
    assert "RUN is missing" in refusal(capsys)
    assert "one argument too many: more" in refusal(capsys, digits_run, "more")
    assert "Did you mean 'digits'?" in refusal(capsys, digits_run, "--data.name", "digit", *out)
    assert "no such file" in refusal(capsys, digits_run, "--data.name", "digit.npz", *out)
    assert "no such run folder or checkpoint" in refusal(capsys, tmp_path / "nowhere")
    assert "no checkpoint at all" in refusal(capsys, tmp_path)
    file = digits_run / "checkpoints" / "last.ckpt"
    assert "only for a run folder" in refusal(capsys, file, "--checkpoint", "best")
    (tmp_path / "file").write_text("x")
    assert "is a file, not a folder" in refusal(capsys, digits_run, "--out", tmp_path / "file")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "finds no GPU" in refusal(capsys, digits_run, "--device", "cuda", *out)
    assert not (tmp_path / "e").exists()


def test_what_is_no_checkpoint(digits_run, rgb_checkpoint, tmp_path, capsys):
    whole = (digits_run / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.ckpt").write_bytes(b"")
    np.savez(tmp_path / "array.ckpt", a=np.zeros(3))
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    for name in ("half.ckpt", "empty.ckpt", "array.ckpt.npz", "other.ckpt"):
        assert name in refusal(capsys, tmp_path / name)
    assert "config.yaml" in refusal(capsys, digits_run / "config.yaml")
    content = torch.load(rgb_checkpoint, weights_only=True)
    content["state_dict"]["net.head.weight"] = torch.zeros(4, 16)
    torch.save(content, tmp_path / "misfit.ckpt")
    assert "do not fit" in refusal(capsys, tmp_path / "misfit.ckpt")


def test_as_a_process(digits_run, tmp_path):
    done = in_process(["evaluate", str(digits_run), "--out", str(tmp_path / "e"), "--json"])
    assert done.returncode == 0, done.stderr
    record = json.loads((digits_run / "record.json").read_text())
    assert json.loads(done.stdout)["correct"] == record["test"]["correct"]
    assert done.stderr == ""


def test_a_hundred_classes_fit_on_a_screen():
    from rich.console import Console

    from vit_gelu.cli.evaluation_files import class_rows
    from vit_gelu.cli.evaluation_table import print_classes

    names = [f"[class]_{i:03}" for i in range(100)]
    confusion = torch.diag(torch.arange(100)) + torch.roll(torch.diag(100 - torch.arange(100)), 1, dims=1)
    console = Console(width=80, record=True, file=io.StringIO())
    print_classes(console, class_rows(confusion, names))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 60
    table = "\n".join(lines[: lines.index("most often mistaken:")])
    for i, name in enumerate(names):
        assert re.search(rf"{re.escape(name)} +{i}\.0\b", table), name
    assert lines[1].startswith(names[0])  # worst first
    assert f"{names[0]} for {names[1]}: 100 of 100" in lines[lines.index("most often mistaken:") + 1]


@pytest.mark.parametrize("probe", ["knn", "fewshot"])
def test_probe_of_a_checkpoint_of_others(digits_run, tmp_path, capsys, monkeypatch, probe):
    """A file with the weights of a run has the features of the run."""
    monkeypatch.chdir(tmp_path)
    _, card = load_network(digits_run)
    assert card["network"]["num_heads"] * 64 != card["network"]["embed_dim"]  # so the heads must be told
    folder = tmp_path / "exported"
    from vit_gelu.cli.export import main as export

    assert export([str(digits_run), "--format", "timm", "--out", str(folder)]) == 0
    options = ["--probe", probe, "--data.name", "digits"]
    theirs = evaluate(capsys, folder, *options)
    ours = evaluate(capsys, digits_run, *options, "--out", tmp_path / "ours")
    assert theirs["result"] == ours["result"]
    assert theirs["activation"] == card["network"]["activation"]


def test_probe_of_a_checkpoint_needs_a_data_set(tmp_path, capsys):
    torch.save({}, tmp_path / "net.pth")
    assert "--data.name" in refusal(capsys, tmp_path / "net.pth", "--probe", "knn")


def test_checkpoints_of_others_are_sent_to_the_probes(tmp_path, capsys):
    torch.save({"head.weight": torch.zeros(2, 3)}, tmp_path / "vit.pth")
    message = refusal(capsys, tmp_path / "vit.pth")
    assert "is not a checkpoint of vit_gelu" in message
    assert "--probe linear, fewshot or knn" in message
