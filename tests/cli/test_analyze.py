"""``vit-gelu analyze``: its numbers against the network run by hand, its files, its mistakes."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

from tests.cli.conftest import write_checkpoint
from vit_gelu.analysis.files import FILES
from vit_gelu.analysis.together import summaries
from vit_gelu.cli.analyze import main
from vit_gelu.cli.errors import guarded
from vit_gelu.data import load_source
from vit_gelu.models import VisionTransformer
from vit_gelu.training import load_network

TEXTS = {"analysis.json", "activations.csv", "attention.csv", "arrays.npz"}


def analyze(capsys, *argv):
    """The JSON that the command prints; it must have succeeded."""
    capsys.readouterr()
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *argv):
    capsys.readouterr()
    assert guarded("vit-gelu analyze", lambda: main([str(a) for a in argv])) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) <= 5
    return captured.err


@pytest.fixture
def no_pictures(monkeypatch):
    """They take longer than everything else."""
    monkeypatch.setattr("vit_gelu.analysis.files.save_figures", lambda *arguments: [])


@pytest.fixture(scope="module")
def found(digits_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("analysis")
    assert main([str(digits_run), "--out", str(folder), "--batch_size", "50"]) == 0
    return folder, json.loads((folder / "analysis.json").read_text())


def test_numbers_are_those_of_the_network_by_hand(digits_run, found):
    _, record = found
    net, card = load_network(digits_run)
    source = load_source("digits")
    hidden = [[] for _ in net.blocks]
    for block, seen in zip(net.blocks, hidden, strict=True):
        block.mlp.fc1.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
    mean, std = card["data"]["mean"][0], card["data"]["std"][0]
    with torch.no_grad():
        for image in source.val.images:
            net.forward_features((image[None].float() / 255 - mean) / std)
    assert record["dataset"] == {
        "name": "digits", "split": "val", "n": len(source.val), "fingerprint": source.fingerprint,
    }  # fmt: skip
    assert record["images"] == len(source.val)
    assert len(record["activations"]) == len(net.blocks)
    for row, seen in zip(record["activations"], hidden, strict=True):
        x = torch.cat(seen).double().numpy()
        assert row["n"] == x.size
        assert (row["mean"], row["sd"]) == pytest.approx((x.mean(), x.std()), rel=1e-4, abs=1e-5)
        assert row["negative"] == pytest.approx((x < 0).mean(), abs=1e-4)  # float32, by other kernels
        assert row["q50"] == pytest.approx(np.median(x), abs=0.011)
        assert row["activation"] == "gelu"
    assert len(record["attention"]["heads"]) == len(net.blocks) * 3


def test_files_hold_the_same_numbers(found):
    folder, record = found
    assert {p.name for p in folder.iterdir()} == set(FILES)
    with (folder / "activations.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["sd"]) for r in rows] == [r["sd"] for r in record["activations"]]
    with (folder / "attention.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["distance"]) for r in rows] == [r["distance"] for r in record["attention"]["heads"]]
    with np.load(folder / "arrays.npz") as arrays:
        assert arrays["histograms"].sum(axis=1).tolist() == [r["n"] for r in record["activations"]]
        assert arrays["rollout"].shape == (8, 2, 2)
        np.testing.assert_allclose(arrays["rollout"].sum(axis=(1, 2)), 1, rtol=1e-5)
        assert arrays["rollout_indices"].tolist() == np.linspace(0, 143, 8).round().tolist()
        assert arrays["position_similarity"].shape == (2, 2, 2, 2)
        assert arrays["patch_filters"].shape[1:] == (1, 4, 4)


def test_pictures_show_what_there_is(found):
    from PIL import Image

    folder, _ = found
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 150, path.name
            assert len(picture.convert("RGB").getcolors(2**24)) > 20, path.name


@pytest.mark.usefixtures("no_pictures")
def test_screen_and_default_folder(digits_run, tmp_path, capsys):
    run = shutil.copytree(digits_run, tmp_path / "run")
    capsys.readouterr()
    assert main([str(run), "--images", "40", "--split", "test"]) == 0
    out = capsys.readouterr().out
    record = json.loads((run / "analysis-digits-test-last" / "analysis.json").read_text())
    assert record["images"] == 40
    assert "40 of 359 test images of digits" in out
    assert max(map(len, out.split("attention distance")[0].splitlines()[1:])) <= 80
    for i, row in enumerate(record["activations"]):
        (line,) = [x for x in out.splitlines() if x.startswith(f"block {i} ")]
        cells = line.split()[2:]
        shares = [
            row[k] for k in ("negative", "zero", "flat", "curved", "linear", "flat_units", "linear_units")
        ]
        assert cells[:4] == [f"{row[k]:.2f}" for k in ("mean", "sd", "q01", "q99")]
        assert cells[4:] == [f"{100 * share:.1f}" for share in shares]
    assert "position embeddings: cosine" in out
    assert "uniform attention has" in out


def test_nothing_is_overwritten_unasked_and_nothing_old_stays(digits_run, rgb_checkpoint, tmp_path, capsys):
    out = tmp_path / "a"
    first = analyze(capsys, digits_run, "--out", out, "--images", 9)
    assert "--overwrite" in refused(capsys, digits_run, "--out", out)
    assert json.loads((out / "analysis.json").read_text()) == first
    net = VisionTransformer(
        image_size=8, patch_size=4, in_channels=1, num_classes=10, embed_dim=16, depth=1, num_heads=2, stem="conv",
        position_embedding="none", seed=0,
    )  # fmt: skip
    file = write_checkpoint(
        tmp_path / "conv.ckpt", net, image_size=[8, 8], in_channels=1, mean=[0.3], std=[0.4], name="digits"
    )
    second = analyze(capsys, file, "--out", out, "--images", 9, "--overwrite", "--data.name", "digits")
    assert set(second["missing"]) == {"patch_filters", "position_embedding"}
    assert second["patch_filters"] is None
    assert {p.name for p in out.iterdir()} == set(FILES) - {"patch_filters.png", "position_embedding.png"}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("activation", ["relu", "swiglu", "gelu_stochastic"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_activations_and_precisions(activation, precision, tmp_path, capsys):
    net = VisionTransformer(
        image_size=8, patch_size=4, in_channels=1, num_classes=10, embed_dim=16, depth=2, num_heads=2, seed=0,
        activation=activation, register_tokens=1,
    )  # fmt: skip
    file = write_checkpoint(
        tmp_path / "a.ckpt", net, image_size=[8, 8], in_channels=1, mean=[0.3], std=[0.4], name="digits"
    )
    options = ("--data.name", "digits", "--precision", precision, "--images", 20, "--out")
    record = analyze(capsys, file, *options, tmp_path / "one")
    again = analyze(capsys, file, *options, tmp_path / "two")
    assert record["activations"] == again["activations"]
    assert record["precision"] == precision
    assert {row["activation"] for row in record["activations"]} == {activation}
    assert record["activation"] == activation
    relu = activation == "relu"
    assert all((row["curved"] == 0) == relu for row in record["activations"])
    assert all((row["zero"] > 0.1) == relu for row in record["activations"])


@pytest.mark.usefixtures("no_pictures")
def test_learned_parameters_are_shown(tmp_path, capsys):
    net = VisionTransformer(
        image_size=8, patch_size=4, in_channels=1, num_classes=10, embed_dim=16, depth=2, num_heads=2, seed=0,
        activation="gelu_learnable",
    )  # fmt: skip
    with torch.no_grad():
        net.blocks[1].mlp.act.mu.fill_(0.25)
    file = write_checkpoint(
        tmp_path / "a.ckpt", net, image_size=[8, 8], in_channels=1, mean=[0.3], std=[0.4], name="digits"
    )
    assert main([str(file), "--data.name", "digits", "--images", "20", "--out", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert "learned mu: 0.000 0.250" in out
    assert "learned sigma: 1.000 1.000" in out
    with (tmp_path / "a" / "activations.csv").open(newline="") as rows:
        assert [float(row["learned_mu"]) for row in csv.DictReader(rows)] == [0, 0.25]


def test_networks_of_timm_have_their_activations_alone(tmp_path, capsys):
    from vit_gelu.models.build import build_network

    config = {"name": "timm/resnet18", "num_classes": 10, "image_size": 32, "in_channels": 1, "seed": 0}
    net = build_network(config | {"activation": "silu"}).eval()
    file = write_checkpoint(
        tmp_path / "timm.ckpt", net, image_size=[32, 32], in_channels=1, mean=[0.3], std=[0.4], name="digits"
    )
    options = ("--data.name", "digits", "--resize", "--images", 5, "--out", tmp_path / "a")
    record = analyze(capsys, file, *options)
    assert "timm/resnet18" in record["missing"]["attention"]
    assert (record["attention"], record["position_embedding"], record["patch_filters"]) == (None, None, None)
    assert {row["activation"] for row in record["activations"]} == {"silu"}
    units = {row["name"]: row["units"] for row in record["activations"]}
    assert units["layer4.1.act2"] == 512
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        "analysis.json", "activations.csv", "arrays.npz", "activations.png",
    }  # fmt: skip
    assert main([str(file), *map(str, options), "--overwrite"]) == 0
    assert "attention: not there: timm/resnet18" in capsys.readouterr().out


def digits_checkpoint(folder, name, activation, seed):
    net = VisionTransformer(
        image_size=8, patch_size=4, in_channels=1, num_classes=10, embed_dim=16, depth=2, num_heads=2, seed=seed,
        activation=activation,
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    return write_checkpoint(
        folder / f"{name}.ckpt", net, image_size=[8, 8], in_channels=1, mean=[0.3], std=[0.4], name="digits"
    )


@pytest.mark.usefixtures("no_pictures")
def test_several_runs_side_by_side(tmp_path, capsys):
    files = [
        digits_checkpoint(tmp_path, f"{name}{seed}", name, seed)
        for name in ("relu", "gelu")
        for seed in (0, 1, 2)
    ]
    argv = [*map(str, files), "--data.name", "digits", "--images", "20", "--out", str(tmp_path / "out")]
    assert main([str(files[0]), *argv]) == 0  # named twice, looked at once
    table = capsys.readouterr().out.split("all 6 runs")[1].splitlines()
    records = {f.stem: json.loads((tmp_path / "out" / f.name / "analysis.json").read_text()) for f in files}
    for name in ("relu", "gelu"):
        (line,) = [x.split() for x in table if x.startswith(name)]
        assert line[1] == "3"
        for cell, key, factor, digits in ((line[2], "mean", 1, 2), (line[4], "negative", 100, 1),
                                          (line[6], "curved", 100, 1)):  # fmt: skip
            each = [np.mean([row[key] for row in records[f"{name}{s}"]["activations"]]) for s in (0, 1, 2)]
            assert cell == f"{factor * np.mean(each):.{digits}f}±{factor * np.std(each, ddof=1):.{digits}f}"
    assert "holds an analysis already" in refused(capsys, *argv)
    both = analyze(capsys, *files[:2], "--data.name", "digits", "--images", 20, "--out", tmp_path / "two")
    assert [r["activations"] for r in both] == [records[f.stem]["activations"] for f in files[:2]]


def test_of_several_runs_none_is_looked_at_if_one_is_wrong(tmp_path, capsys):
    one = digits_checkpoint(tmp_path / "a", "last", "relu", 0)
    other = digits_checkpoint(tmp_path / "b", "last", "relu", 1)
    options = ("--data.name", "digits", "--out", tmp_path / "out")
    assert "no such run" in refused(capsys, one, tmp_path / "c" / "last.ckpt", *options)
    assert "both would go to" in refused(capsys, one, other, *options)
    assert not (tmp_path / "out").exists()


def test_what_one_run_does_not_know_is_left_out_of_its_column():
    def record(activation, curved):
        row = dict.fromkeys(("mean", "sd", "negative", "flat", "flat_units"), 0.5)
        return {"activation": activation, "activations": [row | {"curved": curved}, row | {"curved": 0.3}]}

    first, second = summaries([record("a", 0.1), record("b", None), record("a", 0.5)])
    assert (first.activation, first.runs, first.values["curved"]) == ("a", 2, pytest.approx((0.2, 0.4)))
    assert (second.activation, second.runs, second.values["curved"]) == ("b", 1, ())
    assert second.values["mean"] == (0.5,)


@pytest.mark.usefixtures("no_pictures")
def test_checkpoints_of_others(tmp_path, capsys, monkeypatch):
    from safetensors.torch import save_file

    vit = VisionTransformer(
        image_size=16,
        patch_size=4,
        num_classes=7,
        embed_dim=64,
        depth=2,
        num_heads=1,
        activation="relu",
        seed=0,
    )
    save_file(vit.state_dict(), tmp_path / "theirs.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(30) % 3
    arrays = {
        "train_images": images[30:],
        "train_labels": labels,
        "test_images": images[:30],
        "test_labels": labels,
    }
    np.savez(tmp_path / "noise.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    assert "--data.name" in refused(capsys, "theirs.safetensors")
    assert "--checkpoint best" in refused(
        capsys, "theirs.safetensors", "--data.name", "noise.npz", "--checkpoint", "best"
    )
    record = analyze(capsys, "theirs.safetensors", "--data.name", "noise.npz", "--split", "test")
    assert record["images"] == 30
    assert len(record["checkpoint"]["sha256"]) == 64
    assert len(record["attention"]["heads"]) == 2
    assert [p.name for p in tmp_path.glob("analysis-*")] == ["analysis-noise-test-theirs"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["nowhere/at-all"], "no such run folder or checkpoint"),
        (["digits-run-that-is-not-there"], "is no run folder here"),
        (["RUN", "--split", "vall"], "Did you mean 'val'?"),
        (["RUN", "--images", "0"], "--images: 0: must be a whole number of at least 1"),
        (["RUN", "--image", "5"], "Did you mean --images?"),
        (["RUN", "--checkpoint", "worst"], "Choices: last, best"),
        (["RUN", "--data.name", "cifar1"], "cifar1"),
        (["RUN", "--device", "cuda"], "--device cuda"),
        ([], "RUN is missing"),
    ],
)
def test_mistakes(digits_run, options, expected, capsys):
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    argv = [str(digits_run) if o == "RUN" else o for o in options]
    assert expected in refused(capsys, *argv)


def test_numbers_that_are_not_finite(digits_run, tmp_path, capsys):
    net, _ = load_network(digits_run)
    with torch.no_grad():
        net.blocks[1].mlp.fc1.bias[3] = torch.nan
    file = write_checkpoint(
        tmp_path / "nan.ckpt", net, image_size=[8, 8], in_channels=1, mean=[0.3], std=[0.4], name="digits"
    )
    message = refused(capsys, file, "--data.name", "digits", "--out", tmp_path / "a")
    assert "blocks.1.mlp.act" in message
    assert not (tmp_path / "a").exists()


def test_help_needs_no_torch():
    import subprocess
    import sys

    code = "import sys\nfrom vit_gelu.cli import main\nmain(['analyze', '--help'])\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--images" in done.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_numbers_on_a_gpu_are_those_of_the_processor(digits_run, tmp_path, capsys):
    on = {
        device: analyze(capsys, digits_run, "--device", device, "--out", tmp_path / device)
        for device in ("cpu", "cuda")
    }
    for a, b in zip(on["cpu"]["activations"], on["cuda"]["activations"], strict=True):
        numbers = [k for k, v in a.items() if isinstance(v, float)]
        assert [b[k] for k in numbers] == pytest.approx([a[k] for k in numbers], rel=1e-2, abs=1e-2)
    for a, b in zip(on["cpu"]["attention"]["heads"], on["cuda"]["attention"]["heads"], strict=True):
        assert list(b.values()) == pytest.approx(list(a.values()), rel=1e-2, abs=1e-3)
