"""Every mistake: exit code 2, a few lines that name option, value and nearest choice, nothing left on disk."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.training.helpers import ROOT, arguments, in_process, train
from vit_gelu.cli import main


def failure(capsys, argv):
    """Run a command that must fail as a user's mistake; its message."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert 1 <= len(message.splitlines()) <= 6
    assert all(len(line) < 600 for line in message.splitlines())
    return message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"activation": "glue"}, ["--activation", "'glue'", "Did you mean 'gelu'"]),
        ({"model__activation": "Relu6"}, ["--activation", "'relu'"]),
        ({"activation": "torch.nn.ReLUU"}, ["torch.nn.ReLUU", "ReLU"]),
        ({"activation": "no_such_package.Act"}, ["no_such_package"]),
        ({"model__activation_kwargs": "{slope: 1}"}, ["slope"]),
        ({"model__depht": 3}, ["--model.depht", "--model.depth"]),
        ({"trainer__acclerator": "cpu"}, ["--trainer.acclerator", "--trainer.accelerator"]),
        ({"data__name": "cifar11"}, ["--data.name", "cifar11", "cifar10"]),
        ({"data__augment": "crop_flop"}, ["--data.augment", "crop_flop", "crop_flip"]),
        ({"data__augment": "random_crop(99)"}, ["random_crop", "99"]),
        ({"model__optimizer": "adamv"}, ["--model.optimizer", "adamv", "adam"]),
        ({"model__optimizer_kwargs": "{beta: 1}"}, ["beta", "betas"]),
        ({"model__schedule": "cosin"}, ["--model.schedule", "cosin"]),
        ({"model__name": "vit_tin"}, ["--model.name", "vit_tin", "vit_tiny"]),
        ({"model__patch_size": 3}, ["--model.patch_size", "3", "divisors"]),
        ({"model__num_heads": 5}, ["--model.num_heads", "5", "32"]),
        ({"model__pooling": "men"}, ["--model.pooling", "men", "mean"]),
        ({"model__drop_path": 1.5}, ["--model.drop_path", "1.5"]),
        ({"model__lr": -1}, ["--model.lr", "-1"]),
        ({"model__lr": "fast"}, ["--model.lr", "fast", "float"]),
        ({"model__label_smoothing": 1}, ["--model.label_smoothing", "1"]),
        ({"model__ema_decay": 1}, ["--model.ema_decay", "1"]),
        ({"model__warmup_epochs": 3}, ["--model.warmup_epochs 3: must be <= --trainer.max_epochs 2"]),
        (
            {"model__warmup_epochs": 2, "trainer__max_steps": 15},
            ["--model.warmup_epochs 2", "20 steps", "15"],
        ),
        (
            {"model__warmup_steps": 16, "model__warmup_epochs": 0, "trainer__max_steps": 15},
            ["<= --trainer.max_steps 15"],
        ),
        ({"trainer__max_epochs": "abc"}, ["--trainer.max_epochs", "abc", "int"]),
        ({"trainer__precision": "bf17"}, ["--trainer.precision", "bf17", "bf16"]),
        ({"model__cuda_graphs": "maybe"}, ["--model.cuda_graphs", "maybe", "true, false, auto"]),
        ({"trainer__accelerator": "gpuu"}, ["--trainer.accelerator", "gpuu", "cpu"]),
        ({"trainer__accelerator": "tpu"}, ["--trainer.accelerator tpu", "none", "here: auto, cpu"]),
        ({"trainer__max_epochs": -1}, ["--trainer.max_epochs -1", "--trainer.max_steps"]),
        ({"seed": "abc"}, ["--seed", "abc", "int"]),
        ({"data__global_batch_size": 5000}, ["--data.global_batch_size", "5000", "1294"]),
        ({"data__mixup": -1}, ["mixup", "-1"]),
        ({"test_checkpoint": "first"}, ["--test_checkpoint", "first", "best"]),
        ({"loggers": "[cvs]"}, ["--loggers", "cvs", "csv"]),
        ({"ckpt_path": "nowhere.ckpt"}, ["--ckpt_path nowhere.ckpt: no such"]),
        ({"seed": -3}, ["--seed -3", "between 0"]),
        ({"model__lr": "nan"}, ["--model.lr nan", "finite"]),
        ({"trainer__accumulate_grad_batches": 0}, ["--trainer.accumulate_grad_batches 0", ">= 1"]),
        ({"trainer__gradient_clip_val": -1}, ["--trainer.gradient_clip_val -1", ">= 0"]),
        ({"trainer__devices": 0}, ["--trainer.devices 0", "auto"]),
        ({"trainer__log_every_n_steps": 0}, ["--trainer.log_every_n_steps 0", ">= 1"]),
        ({"trainer__check_val_every_n_epoch": 0}, ["--trainer.check_val_every_n_epoch 0", ">= 1"]),
        ({"trainer__val_check_interval": 0}, ["--trainer.val_check_interval 0", "limit_val_batches"]),
        ({"trainer__limit_train_batches": 0}, ["--trainer.limit_train_batches 0", "> 0"]),
        ({"trainer__limit_val_batches": 0.5}, ["--trainer", "limit_val_batches", "1.0"]),
        ({"trainer__min_epochs": 5}, ["--trainer.min_epochs 5", "--trainer.max_epochs 2"]),
        ({"trainer__default_root_dir": "elsewhere"}, ["--trainer.default_root_dir elsewhere", "--out"]),
        ({"trainer__devices": "one"}, ["--trainer", "devices", "int > 0"]),
        (
            {"trainer__callbacks": "EarlyStopping", "trainer__callbacks__monitor": "val_top"},
            ["--trainer.callbacks EarlyStopping", "val_top", "val_top1"],
        ),
        ({"trainer__strategy": "ddp_spawn"}, ["--trainer.strategy", "use ddp"]),
        (
            {"trainer__callbacks": "EarlyStoping"},
            ["--trainer.callbacks", "'EarlyStoping'", "Did you mean 'EarlyStopping'"],
        ),
        (
            {
                "trainer__callbacks": "EarlyStopping",
                "trainer__callbacks__monitor": "val_loss",
                "trainer__limit_val_batches": 0,
            },
            ["--trainer.callbacks EarlyStopping: without validation, no val_loss"],
        ),
        ({"trainer__callbacks": "EarlyStopping"}, ["EarlyStopping: needs --trainer.callbacks.monitor"]),
        (
            {"trainer__callbacks": "EarlyStopping", "trainer__callbacks__moniter": "val_loss"},
            ["unknown option --trainer.callbacks.moniter", "Did you mean --trainer.callbacks.monitor"],
        ),
        (
            {"trainer__callbacks": "LearningRateMonitor", "trainer__callbacks__log_momentum": "x"},
            ["--trainer.callbacks.log_momentum x", "bool"],
        ),
        # Lightning's own that would change what is trained, or do nothing.
        (
            {"trainer__callbacks": "Timer", "trainer__callbacks__duration": "00:00:01:00"},
            ["--trainer.callbacks Timer: give --trainer.max_time"],
        ),
        (
            {"trainer__callbacks": "LearningRateFinder"},
            ["LearningRateFinder: the record would not know the rate"],
        ),
        ({"trainer__callbacks": "RichProgressBar"}, ["RichProgressBar: a run shows its own"]),
        ({"trainer__callbacks": "BackboneFinetuning"}, ["BackboneFinetuning: give --model.freeze"]),
        (
            {
                "trainer__callbacks": "GradientAccumulationScheduler",
                "trainer__callbacks__scheduling": "{2: 2}",
            },
            ["GradientAccumulationScheduler", "give --trainer.accumulate_grad_batches"],
        ),
        ({"trainer__logger": "CVSLogger"}, ["--trainer.logger", "'CVSLogger'", "'CSVLogger'"]),
        ({"checkpoint_minutes": -1}, ["--checkpoint_minutes -1", ">= 0"]),
        ({"trainer__barebones": "true"}, ["--trainer.barebones true", "vit-gelu bench"]),
        ({"trainer__enable_model_summary": "true"}, ["--trainer.enable_model_summary true", "record.json"]),
        (
            {"model__optimizer": "muon", "model__optimizer_kwargs": "{momentum: abc}"},
            ["optimizer_kwargs", "abc"],
        ),
        ({"model__optimizer_kwargs": "{momentum: 0.9}"}, ["momentum", "--model.optimizer_kwargs null"]),
        ({"ckpt_path": "last"}, ["--ckpt_path last", "no"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_wrong_options(capsys, tmp_path, options, expected):
    message = failure(capsys, ["train", *arguments(tmp_path / "run", **options)])
    for part in expected:
        assert part in message, message
    assert not (tmp_path / "run").exists(), "a run that never began left a folder"


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("model: {depht: 3}", ["recipe.yaml: unknown option --model.depht", "--model.depth"]),
        ("modle: {depth: 3}", ["modle", "--model.depth"]),
        ("model: {depth: deep}", ["--model.depth", "deep", "int"]),
        ("model: {activation: glue}", ["'glue'", "'gelu'"]),
        ("model: [unclosed", ["line"]),
        ("trainer: {max_epoch: 3}", ["max_epoch", "max_epochs"]),
    ],
)
def test_wrong_yaml(capsys, tmp_path, yaml, expected):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml + "\n")
    message = failure(capsys, ["train", "--config", str(recipe), "--out", str(tmp_path / "run")])
    for part in expected:
        assert part in message, message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["trian"], ["trian", "train"]),
        (["train", "--config", "digitz"], ["digitz", "digits"]),
        (["train", "--config"], ["--config", "expects"]),
        (["train", "digits"], ["digits", "--config"]),
        (["train", "--resume", "nowhere"], ["--resume nowhere", "no such folder"]),
        (["train", "--resume"], ["--resume", "expects"]),
    ],
    ids=" ".join,
)
def test_wrong_commands(capsys, argv, expected):
    message = failure(capsys, argv)
    for part in expected:
        assert part in message, message


def test_missing_data_offline(capsys, tmp_path):
    """A mirror that answers nothing is all that there is."""
    options = {
        "data__name": "cifar10",
        "data__root": tmp_path / "data",
        "data__mirror": "http://127.0.0.1:9",
        "data__augment": "none",
    }
    message = failure(capsys, ["train", *arguments(tmp_path / "run", **options)])
    assert "cifar" in message
    assert str(tmp_path / "data") in message
    assert not (tmp_path / "run").exists()


def arrays(**changes):
    """A small valid array file's content, with changes."""
    generator = np.random.default_rng(0)
    content = {
        "train_images": generator.integers(0, 256, (40, 8, 8), dtype=np.uint8),
        "train_labels": np.arange(40) % 4,
        "test_images": generator.integers(0, 256, (8, 8, 8), dtype=np.uint8),
        "test_labels": np.arange(8) % 4,
    } | changes
    return {k: v for k, v in content.items() if v is not None}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"test_labels": None}, "test_labels"),
        ({"train_images": np.zeros((40, 8, 8), np.float32)}, "float32"),
        ({"train_labels": np.arange(39) % 4}, "39"),
        ({"train_labels": np.arange(40) % 4 - 1}, "-1"),
        ({"class_names": np.array(["a", "b", "c"])}, "3"),
        ({"train_images": np.zeros((40, 8), np.uint8)}, "train_images"),
        ({"train_labels": np.array([object()] * 40)}, "train_labels"),
    ],
    ids=["missing", "float", "lengths", "negative", "out-of-range", "shape", "pickle"],
)
def test_broken_array_files(capsys, tmp_path, changes, expected):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays(**changes))
    options = {"data__name": path, "data__global_batch_size": 8}
    message = failure(capsys, ["train", *arguments(tmp_path / "run", **options)])
    assert expected in message
    assert "mine.npz" in message


def test_truncated_array_file(capsys, tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:-100])
    message = failure(
        capsys, ["train", *arguments(tmp_path / "run", data__name=path, data__global_batch_size=8)]
    )
    assert "mine.npz" in message


def test_unreadable_image_and_empty_class_are_named(capsys, tmp_path):
    from PIL import Image

    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "set" / split / name / f"{i}.png")
    options = {"data__name": tmp_path / "set", "data__global_batch_size": 4, "data__image_size": 8}
    broken = tmp_path / "set" / "train" / "dog" / "3.png"
    good = broken.read_bytes()
    broken.write_bytes(b"not an image")
    message = failure(capsys, ["train", *arguments(tmp_path / "run", **options)])
    assert str(broken) in message
    broken.write_bytes(good)
    (tmp_path / "set" / "train" / "bird").mkdir()
    message = failure(capsys, ["train", *arguments(tmp_path / "run", **options)])
    assert "bird" in message


def test_a_finished_run_is_never_overwritten(capsys, tmp_path):
    out = tmp_path / "run"
    train(out, trainer__max_epochs=1, trainer__limit_train_batches=2)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    message = failure(capsys, ["train", *arguments(out, trainer__max_epochs=1)])
    assert "finished run" in message
    assert str(out) in message
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_without_out_a_new_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = arguments(tmp_path, trainer__max_epochs=1, trainer__limit_train_batches=2)
    place = argv.index("--out")
    argv = argv[:place] + argv[place + 2 :]
    for _ in range(2):
        main(["train", *argv])
    names = sorted(p.name for p in (tmp_path / "runs").iterdir())
    assert names == ["digits-vit_tiny-gelu-seed0", "digits-vit_tiny-gelu-seed0-2"]


def test_broken_checkpoint_and_foreign_checkpoint(capsys, tmp_path):
    import torch

    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"PK\x03\x04 nothing")
    assert "broken.ckpt" in failure(capsys, ["train", *arguments(tmp_path / "a", ckpt_path=broken)])
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}}, foreign)
    assert "foreign.ckpt" in failure(capsys, ["train", *arguments(tmp_path / "b", ckpt_path=foreign)])


def test_divergence_is_named_and_recorded(tmp_path, capsys):
    import json

    out = tmp_path / "run"
    options = {
        "activation": "relu_squared",
        "model__lr": 1e18,
        "model__optimizer": "sgd",
        "model__schedule": "constant",
    }
    with pytest.raises(SystemExit) as stop:
        main(["train", *arguments(out, **options)])
    assert stop.value.code == 1
    message = capsys.readouterr().err
    record = json.loads((out / "record.json").read_text())
    assert record["status"] == "diverged"
    assert f"step {record['diverged_step']}" in message
    assert "learning rate 1e+18" in message
    assert record["diverged_lr"] == 1e18
    assert record["test"] is None


def test_in_a_process_of_its_own(tmp_path):
    done = in_process(["train", *arguments(tmp_path / "run", activation="glue")])
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("vit-gelu train: error: --activation: unknown activation 'glue'")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("run", ["raise KeyboardInterrupt", "return 130"])
def test_ctrl_c_ends_a_shells_loop_too(run):
    """Only where a command died of the signal does a shell not go on with its next."""
    code = f"""if True:
        import sys
        from types import SimpleNamespace
        from vit_gelu.cli import main
        def run(argv): {run}
        sys.modules["vit_gelu.cli.train"] = SimpleNamespace(main=run)
        main(["train"])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == ("vit-gelu train: stopped by SIGINT\n" if "raise" in run else "")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"hello", ["must hold options"]),
        (b"- a", ["must hold options"]),
        (b"model: {depth: 3", ["not YAML"]),
        (b"\xd2\x00\xff", ["not a text file"]),
    ],
)
def test_files_that_are_no_recipes_are_named(tmp_path, capsys, content, expected):
    (tmp_path / "recipe.yaml").write_bytes(content)
    message = failure(capsys, ["train", "--config", str(tmp_path / "recipe.yaml")])
    for part in (*expected, str(tmp_path / "recipe.yaml")):
        assert part in message, message


def test_unknown_help_topic(capsys):
    assert "Did you mean 'trainer'" in failure(capsys, ["train", "--help", "trainr"])


def test_out_that_is_a_file(tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    assert "--out" in failure(capsys, ["train", *arguments(tmp_path / "run")])
    assert (tmp_path / "run").read_text() == "mine"


def test_a_refused_resume_leaves_the_run_as_it_was(tmp_path, capsys):
    out = tmp_path / "run"
    train(out, trainer__max_epochs=1)
    (out / "record.json").unlink()
    before = (out / "config.yaml").read_text()
    assert "depth" in failure(capsys, ["train", "--resume", str(out), "--model.depth", "3"])
    # A shipped recipe by its name, as elsewhere: its options are another run's.
    assert "network option" in failure(capsys, ["train", "--resume", str(out), "--config", "digits"])
    assert "'digits'" in failure(capsys, ["train", "--resume", str(out), "--config", "digitz"])
    assert (out / "config.yaml").read_text() == before
    main(["train", "--resume", str(out)])
    assert (out / "record.json").exists()
