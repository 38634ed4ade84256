"""``vit-gelu evaluate --probe`` on a run, against scikit-learn on features that were computed image by image."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from tests.cli.test_evaluate import digits_arrays, evaluate, refusal
from vit_gelu.cli.evaluate import main
from vit_gelu.data import load_source
from vit_gelu.training import load_network


@pytest.fixture(scope="module")
def by_hand(digits_run):
    """Features of train, validation and test digits: what the head sees, caught at its door."""
    net, card = load_network(digits_run)
    source = load_source("digits")
    mean, std = card["data"]["mean"][0], card["data"]["std"][0]
    caught = []
    net.head.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    parts = {}
    for name in ("train", "val", "test"):
        part = getattr(source, name)
        caught.clear()
        with torch.no_grad():
            for start in range(0, len(part), 100):
                net((part.images[start : start + 100].float() / 255 - mean) / std)
        parts[name] = torch.cat(caught).double().numpy(), part.labels.numpy()
    return parts


def test_knn(digits_run, by_hand, tmp_path, capsys):
    found = evaluate(capsys, digits_run, "--probe", "knn", "--neighbours", 7, "--out", tmp_path / "e")
    oracle = KNeighborsClassifier(7, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    oracle.fit(*by_hand["train"])
    assert found["result"]["correct"] == pytest.approx(oracle.score(*by_hand["test"]) * 359, abs=1)
    assert found["result"]["n"] == 359
    assert found["settings"] == {"neighbours": 7, "temperature": 0.07, "train_n": len(by_hand["train"][1])}
    assert json.loads((tmp_path / "e" / "probe.json").read_text()) == found
    assert [p.name for p in (tmp_path / "e").iterdir()] == ["probe.json"]


def test_linear(digits_run, by_hand, tmp_path, capsys):
    found = evaluate(capsys, digits_run, "--probe", "linear", "--out", tmp_path / "e")
    train, labels = by_hand["train"]
    mean, std = train.mean(0), train.std(0)
    result, settings = found["result"], found["settings"]
    assert (settings["chosen_by"], settings["train_n"]) == ("val", len(labels))
    model = LogisticRegression(C=1 / (len(labels) * result["l2"]), tol=1e-8, max_iter=5000)
    model.fit((train - mean) / std, labels)
    score = model.score((by_hand["test"][0] - mean) / std, by_hand["test"][1])
    assert result["correct"] == pytest.approx(score * 359, abs=2)  # float32, looser than the oracle
    chosen = next(row for row in found["grid"] if row["l2"] == result["l2"])
    assert chosen["top1"] == max(row["top1"] for row in found["grid"])
    assert len(found["grid"]) == len(settings["grid"]) == 7


def test_judged_by_val_it_is_not_chosen_by_val(digits_run, by_hand, tmp_path, capsys):
    found = evaluate(capsys, digits_run, "--probe", "linear", "--split", "val", "--out", tmp_path / "e")
    settings, n = found["settings"], len(by_hand["train"][1])
    assert settings["chosen_by"] == "a tenth of train, held out"
    assert settings["train_n"] + settings["chosen_by_n"] == n
    assert settings["chosen_by_n"] == round(n / 10)
    assert found["result"]["n"] == len(by_hand["val"][1])


def test_fewshot_on_the_screen_and_in_the_default_folder(digits_run, tmp_path, capsys):
    import shutil

    run = shutil.copytree(digits_run, tmp_path / "run")
    capsys.readouterr()
    assert main([str(run), "--probe", "fewshot", "--shots", "1", "5"]) == 0
    out = capsys.readouterr().out
    found = json.loads((run / "evaluation-digits-test-last-fewshot" / "probe.json").read_text())
    for row in found["result"]:
        assert row["top1_mean"] == pytest.approx(np.mean(row["top1"]))
        assert f"top-1 {100 * row['top1_mean']:.2f} ± {100 * np.std(row['top1'], ddof=1):.2f} %" in out
    assert [row["shots"] for row in found["result"]] == [1, 5]
    assert "holds a probe already" in refusal(capsys, run, "--probe", "fewshot")
    assert evaluate(capsys, run, "--probe", "fewshot", "--overwrite")["settings"]["shots"] == [10]


def test_classes_need_not_be_those_of_the_training(digits_run, by_hand, tmp_path, capsys):
    """Odd or even: two classes, and the features tell them better than chance."""
    arrays = digits_arrays()
    parity = {f"{part}_labels": arrays[f"{part}_labels"] % 2 for part in ("train", "test")}
    file = tmp_path / "parity.npz"
    np.savez(file, **(arrays | parity | {"class_names": np.array(["even", "odd"])}))
    assert "classes" in refusal(capsys, digits_run, "--data.name", file)
    found = evaluate(capsys, digits_run, "--data.name", file, "--probe", "linear", "--out", tmp_path / "e")
    assert found["result"]["top1"] > 0.7
    assert found["dataset"]["same_as_training"] is False


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--probe", "liner"], "Did you mean 'linear'"),
        (["--probe", "linear", "--split", "train"], "--split train: a probe learns from it"),
        (["--probe", "linear", "--shots", "5"], "--shots: only with --probe fewshot"),
        (["--neighbours", "5"], "--neighbours: only with --probe knn"),
        (["--probe", "fewshot", "--shots", "0"], "must be a whole number of at least 1"),
        (["--probe", "fewshot", "--shots", "500"], "--shots 500: class"),
        (["--probe", "knn", "--neighbours", "100000"], "--neighbours 100000: must lie between 1 and"),
    ],
)
def test_what_cannot_be_is_refused(digits_run, tmp_path, capsys, argv, message):
    assert message in refusal(capsys, digits_run, *argv, "--out", tmp_path / "e")
    assert not (tmp_path / "e").exists()
