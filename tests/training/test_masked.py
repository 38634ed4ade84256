"""Masked pre-training through the user's door: what it leaves behind, its numbers, its resume, its refusals."""

import json
import os
import signal

import pytest
import torch
from PIL import Image

from tests.training.helpers import (
    ROOT,
    TINY,
    assert_same_weights,
    metrics,
    weights,
)
from vit_gelu.cli import pretrain as command
from vit_gelu.cli.errors import guarded
from vit_gelu.data import load_source
from vit_gelu.models import VisionTransformer
from vit_gelu.models.attention_kernels import KERNELS, explicit
from vit_gelu.models.masked import MaskedAutoencoder, MaskedDecoder, draw_visible, visible_count
from vit_gelu.randomness import key
from vit_gelu.training import load_network

MASKED = TINY | {
    "data.augment": "none",
    "model.patch_size": 2,
    "model.decoder_embed_dim": 16,
    "model.decoder_num_heads": 2,
    "model.decoder_depth": 1,
    "model.pooling": "mean",
    "model.class_token": "false",
}


def arguments(out, **options):
    merged = MASKED | {k.replace("__", "."): v for k, v in options.items()}
    flags = [f"--{k}={v}" for k, v in merged.items()]
    empty = str(ROOT / "tests/training/empty.yaml")
    return ["--config", empty, "--out", str(out), '--loggers=["csv"]', *flags]


def pretrain(out, *extra, **options):
    assert command.main([*arguments(out, **options), *extra]) == 0
    return json.loads((out / "record.json").read_text())


def refusal(capsys, *argv, main=command.main, name="pretrain"):
    capsys.readouterr()
    assert guarded(f"vit-gelu {name}", lambda: main([str(a) for a in argv])) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) <= 5
    return err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("masked") / "run"
    return out, pretrain(out, trainer__max_epochs=6)


def test_the_record(run):
    out, record = run
    assert record["status"] == "finished"
    assert record["objective"] == "masked"
    assert record["test"] is None
    assert record["tested"] is None
    assert set(record["val"]) == {"loss", "n"}
    assert record["val"]["n"] == record["dataset"]["val_n"]
    assert set(record["best"]) == {"val_loss", "step"}
    net, _ = load_network(out)
    assert record["model"]["parameters"] == sum(p.numel() for p in net.parameters())
    rows = metrics(out)
    assert not [name for name in rows[0] if "top" in name]
    train = [float(r["train_loss"]) for r in rows if r["train_loss"]]
    val = [float(r["val_loss"]) for r in rows if r["val_loss"]]
    # Below 1 it beats the best constant: patches have variance 1.
    assert val[-1] < 0.95 * val[0]
    assert train[-1] < train[0]
    assert val[-1] == record["val"]["loss"]
    assert record["best"]["val_loss"] == min(val)
    assert record["speed"]["train_images_per_second"] is None or record["speed"]["mfu"] > 0


def test_the_run_folder_holds_a_plain_network(run):
    out, _ = run
    net, card = load_network(out)
    assert isinstance(net, VisionTransformer)
    assert net.config["num_classes"] == 0
    assert net.config["position_embedding"] == "sincos2d"
    assert card["masked"]["mask_ratio"] == 0.75
    assert len(card["data"]["mean"]) == 1
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 32)
    state = weights(out)
    assert {name.split(".")[0] for name in state} == {"net", "decoder"}
    with Image.open(out / "reconstruction.png") as picture:
        assert picture.width > 2 * picture.height


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16-mixed", torch.bfloat16), ("bf16-true", torch.bfloat16), ("64-true", torch.float64)],
)
def test_the_picture_is_drawn_in_the_precision_of_the_run(tmp_path, monkeypatch, precision, dtype):
    """Some attention kernels know no other, and such a run must not fail at its very end."""

    def particular(qkv, dropout):
        if qkv.dtype != dtype and not torch.is_grad_enabled():  # operations are counted in float32
            raise RuntimeError(f"not for {qkv.dtype}")
        return explicit(qkv, dropout)

    monkeypatch.setitem(KERNELS, "explicit", particular)
    pretrain(tmp_path / "run", model__attention="explicit", trainer__precision=precision)
    with Image.open(tmp_path / "run" / "reconstruction.png") as picture:
        assert picture.width > 2 * picture.height


def test_the_validation_loss_is_that_of_a_loop_over_single_images(run):
    out, record = run
    net, card = load_network(out)
    decoder = MaskedDecoder(net, **card["masked"]["decoder"])
    decoder.load_state_dict(
        {k.removeprefix("decoder."): v for k, v in weights(out).items() if k.startswith("decoder.")}
    )
    model = MaskedAutoencoder(net, decoder).eval()
    images = load_source("digits").val.images.float() / 255
    images = (images - card["data"]["mean"][0]) / card["data"]["std"][0]
    losses = []
    with torch.no_grad():
        for i, image in enumerate(images):
            visible = draw_visible(key(0, "noise", "validation masks"), torch.tensor([i]), 16, 4)
            losses.append(model(image[None], visible).item())
    assert sum(losses) / len(losses) == pytest.approx(record["val"]["loss"], rel=1e-5)


def test_flops_are_the_closed_form(run):
    _, record = run
    n, visible, d, e, pixels = 16, 4, 32, 16, 4

    def block(tokens, width):
        return 2 * tokens * 12 * width * width + 4 * tokens * tokens * width

    embed = 2 * n * pixels * d  # all patches are embedded; nobody needs the gradient of the pixels
    decoder = 2 * visible * d * e + block(n, e) + 2 * n * e * pixels
    assert record["speed"]["flops_per_image"] == 3 * (embed + 2 * block(visible, d) + decoder) - embed


def test_the_decoder_follows_the_network_or_says_so(tmp_path, monkeypatch, capsys, run):
    from vit_gelu.training import masked

    assert run[1]["attention"]["why"] == "asked for; decoder: explicit, explicit"
    monkeypatch.setattr(masked, "usable", lambda kernel, shape, device: shape.head_dim != 8)
    text = refusal(capsys, *arguments(tmp_path / "run"))
    assert "--model.attention explicit: cannot compute the decoder (2 heads of 8) in float32 on cpu" in text
    assert not (tmp_path / "run").exists()


def test_the_same_seed_repeats_and_another_does_not(tmp_path):
    pretrain(tmp_path / "a", trainer__max_epochs=1, seed=5)
    assert command.main(["--config", str(tmp_path / "a/config.yaml"), "--out", str(tmp_path / "b")]) == 0
    pretrain(tmp_path / "c", trainer__max_epochs=1, seed=6)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert_same_weights(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert metrics(tmp_path / "a") != metrics(tmp_path / "c")


NOISY = {
    "activation": "gelu_stochastic",
    "data__augment": "digits",
    "model__dropout": 0.1,
    "model__drop_path": 0.2,
    "model__ema_decay": 0.9,
    "model__warmup_epochs": 0.5,
    "trainer__max_epochs": 3,
    "seed": 3,
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, pretrain(out, **NOISY)


@pytest.mark.parametrize("batches", [4, 10])
def test_resume_is_bit_identical(uninterrupted, tmp_path, monkeypatch, batches):
    from vit_gelu.training.speed import SpeedMeter

    whole, record = uninterrupted
    original, left = SpeedMeter.on_train_batch_end, [batches]

    def patched(self, *args):
        original(self, *args)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(SpeedMeter, "on_train_batch_end", patched)
        assert command.main(arguments(out, **NOISY)) == 128 + signal.SIGTERM
    assert not (out / "record.json").exists()
    assert command.main(["--resume", str(out)]) == 0
    again = json.loads((out / "record.json").read_text())
    assert_same_weights(weights(whole), weights(out))
    assert_same_weights(weights(whole, "current_model_state"), weights(out, "current_model_state"))
    assert metrics(whole) == metrics(out)
    for name in ("order_hash", "val", "steps", "epochs", "config_hash", "best"):
        assert again[name] == record[name], name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model__mask_ratio": 1}, "--model.mask_ratio 1.0: must lie between 0 and 1"),
        ({"model__patch_size": 8}, "none stays visible"),
        ({"data__mixup": 0.5}, "--data.mixup 0.5: mixes labels"),
        ({"model__decoder_num_heads": 3}, "--model.decoder_num_heads 3 does not divide"),
        ({"activation": "glue"}, "Did you mean 'gelu'"),
        ({"model__maskratio": 0.5}, "Did you mean --model.mask_ratio"),
        ({"model__label_smoothing": 0.1}, "All options: vit-gelu pretrain --help all"),
        ({"test_checkpoint": "best"}, "unknown option --test_checkpoint"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, capsys, options, message):
    assert message in refusal(capsys, *arguments(tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_each_command_goes_on_with_its_own_runs(run, tmp_path, capsys):
    from vit_gelu.cli import train

    out, _ = run
    text = refusal(capsys, "--resume", out, main=train.main, name="train")
    assert f"vit-gelu pretrain --resume {out}" in text
    checkpoint = out / "checkpoints" / "last.ckpt"
    text = refusal(capsys, *arguments(tmp_path / "x", seed=1), "--ckpt_path", checkpoint)
    assert "has seed 0, this run 1" in text
    text = refusal(capsys, *arguments(tmp_path / "x", model__mask_ratio=0.5), "--ckpt_path", checkpoint)
    assert "mask_ratio = 0.75, this run 0.5" in text
    assert command.main(["--resume", str(out)]) == 0
    assert "finished already" in capsys.readouterr().out


def test_there_are_no_classes_to_evaluate_predict_or_compare(run, tmp_path, capsys):
    from vit_gelu.ablation.records import LeftOut, read_run
    from vit_gelu.cli import evaluate, predict

    out, _ = run
    text = refusal(capsys, out, "--out", tmp_path / "e", main=evaluate.main, name="evaluate")
    assert "--probe linear" in text
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    text = refusal(capsys, out, tmp_path / "x.png", main=predict.main, name="predict")
    assert "has no head" in text
    left = read_run(out)
    assert isinstance(left, LeftOut)
    assert "no accuracy" in left.reason


def test_help_names_only_options_that_exist(capsys):
    import re

    from vit_gelu.cli.options import build_parser

    assert command.main(["--help"]) == 0
    text = capsys.readouterr().out
    names = {*build_parser("pretrain").option_names(), "--resume", "--help", "--probe"}
    assert set(re.findall(r"--[\w.]+", text)) <= names
    assert "--test_checkpoint" not in names
    assert command.main(["--help", "model"]) == 0
    assert "--model.mask_ratio" in capsys.readouterr().out


def test_the_shipped_recipes_parse_and_are_not_trains():
    from vit_gelu.cli.configs import expand_configs, find_config, shipped_configs
    from vit_gelu.cli.options import build_parser

    recipes = shipped_configs("pretrain")
    assert "pretrain/cifar100" in recipes
    assert not set(recipes) & set(shipped_configs())
    assert find_config("cifar100", "pretrain") == recipes["pretrain/cifar100"]
    assert find_config("cifar100") == shipped_configs()["cifar100"]
    parser = build_parser("pretrain")
    for path in recipes.values():
        config = parser.parse_args(["--config", str(path)])
        assert visible_count((32 // config.model.patch_size) ** 2, config.model.mask_ratio) > 0
    assert expand_configs([], "pretrain")[1].endswith("pretrain/cifar100.yaml")
