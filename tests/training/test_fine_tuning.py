"""Runs that start from a checkpoint: what is loaded, kept, swapped, blended, frozen; and runs of timm's models."""

import json
import shutil

import pytest
import torch
import yaml

from tests.training.helpers import assert_same_weights, metrics, train, weights
from tests.training.test_resume import train_until
from vit_gelu.data import load_source
from vit_gelu.models import build_vit
from vit_gelu.training import load_network

# Of a run from a checkpoint: what the checkpoint does not say itself.
FREE = {
    "model__patch_size": "null",
    "model__embed_dim": "null",
    "model__depth": "null",
    "model__num_heads": "null",
}
ARRIVED = {"model__lr": 1e-12, "model__weight_decay": 0, "trainer__max_epochs": 1}  # nothing moves


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run of a few epochs with ReLU, good enough that its predictions mean something."""
    out = tmp_path_factory.mktemp("source") / "relu"
    train(out, activation="relu", trainer__max_epochs=6, model__pooling="mean", seed=5)
    return out


def tuned(out, source, *extra, **options):
    return train(out, *extra, model__pretrained=source, **FREE, **options)


def normalised(card, images):
    mean, std = (torch.tensor(card["data"][k]).view(1, -1, 1, 1) for k in ("mean", "std"))
    return (images / 255 - mean) / std


def test_a_run_that_does_not_move_is_its_checkpoint(source, tmp_path):
    record = tuned(tmp_path / "run", source, **ARRIVED)
    before = json.loads((source / "record.json").read_text())
    for split in ("val", "test"):
        assert record[split]["correct"] == before[split]["correct"]
        assert record[split]["loss"] == pytest.approx(before[split]["loss"], rel=1e-5)
    assert record["activation"] == "relu"
    assert record["pretrained"]["source"] == str(source)
    assert record["pretrained"]["swap"] is None
    net, _ = load_network(tmp_path / "run")
    assert [type(m).__name__ for m in net.modules() if "relu" in type(m).__name__.lower()]


def test_swap_is_reported_as_it_is(source, tmp_path, capsys):
    """The change of the logits by hand: the same weights in a network that was built with the new activation."""
    record = tuned(tmp_path / "run", source, activation="tanh", **ARRIVED)
    old, card = load_network(source)
    new = build_vit(**{"name": "vit_tiny", **card["network"], "activation": "tanh"})
    new.load_state_dict(old.state_dict())
    images = normalised(card, load_source("digits").train.images[:256])
    with torch.no_grad():
        a, b = old(images), new.eval()(images)
    swap = record["pretrained"]["swap"]
    assert swap["max_abs"] == pytest.approx(float((a - b).abs().max()), rel=1e-4)
    assert swap["mean_abs"] == pytest.approx(float((a - b).abs().mean()), rel=1e-4)
    assert swap["top1_agreement"] == pytest.approx(float((a.argmax(1) == b.argmax(1)).float().mean()))
    assert (record["activation"], record["pretrained"]["activation"]) == ("tanh", "relu")
    assert "relu -> tanh in 2 places" in capsys.readouterr().out
    net, _ = load_network(tmp_path / "run")
    with torch.no_grad():
        torch.testing.assert_close(net(images), b, rtol=1e-4, atol=1e-5)


def test_images_come_as_the_checkpoint_knows_them(source, tmp_path, capsys):
    """Its mean and std, not those of the new data; enlarged to its size."""
    large = tmp_path / "large"
    train(large, data__upsample=16, data__mean="[0.25]", data__std="[0.4]", trainer__max_epochs=1)
    tuned(tmp_path / "run", large, trainer__max_epochs=1)
    _, card = load_network(tmp_path / "run")
    assert card["data"]["mean"] == [0.25]
    assert card["data"]["std"] == [0.4]
    assert card["network"]["image_size"] == [16, 16]
    asked = tmp_path / "asked"
    own = {"data__mean": "[0.5]", "data__image_size": 8, "trainer__max_epochs": 1}
    with pytest.raises(
        ValueError, match=r"--data.mean: with a checkpoint give --data.std as well.*std \[0.4\]"
    ):
        tuned(asked, large, **own)
    record = tuned(asked, large, **own, data__std="[0.3]")
    _, card = load_network(asked)
    assert card["data"]["mean"] == [0.5]
    assert card["data"]["std"] == [0.3]
    assert card["network"]["image_size"] == [8, 8]
    said = capsys.readouterr().out
    assert "images: enlarged from 8x8 to 16x16, the checkpoint's size" in said
    assert "activation gelu, kept" in said
    assert "WARNING" not in said
    assert record["pretrained"]["images"] == [
        "mean [0.5], std [0.3]: as asked for (the checkpoint's: mean [0.25], std [0.4])"
    ]


def test_images_that_were_trained_on_do_not_validate_unsaid(source, tmp_path, capsys):
    """As by comparing the images: with another share of them, some were in the training before; with the same, none."""
    seen = {image.numpy().tobytes() for image in load_source("digits").train.images}
    for fraction, some in ((0.1, False), (0.3, True)):
        again = load_source("digits", val_fraction=fraction).val.images
        assert any(image.numpy().tobytes() in seen for image in again) == some
        out = tmp_path / str(fraction)
        record = tuned(out, source, data__val_fraction=fraction, trainer__max_epochs=1)
        assert (
            "WARNING: the checkpoint was trained on digits with another split" in capsys.readouterr().out
        ) == some
        assert any("another split" in line for line in record["pretrained"]["changes"]) == some


def test_own_config_repeats_the_run(source, tmp_path):
    first = tuned(
        tmp_path / "first", source, activation="silu", model__layer_decay=0.8, model__warmup_steps=3
    )
    from vit_gelu.cli.train import main

    config = tmp_path / "first" / "config.yaml"
    assert main(["--config", str(config), "--out", str(tmp_path / "second")]) == 0
    second = json.loads((tmp_path / "second" / "record.json").read_text())
    assert_same_weights(weights(tmp_path / "first"), weights(tmp_path / "second"))
    for key in ("val", "test", "order_hash", "config_hash", "pretrained"):
        assert first[key] == second[key]


def test_from_scratch_the_config_says_all_defaults(tmp_path):
    train(tmp_path / "run", trainer__max_epochs=1)
    model = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]
    assert (model["activation"], model["pooling"], model["stem"]) == ("gelu", "cls", "patch")
    assert model["class_token"] is True
    assert model["pretrained"] is None


def test_frozen_backbone(source, tmp_path):
    record = tuned(tmp_path / "run", source, model__freeze="backbone", trainer__max_epochs=2)
    learning = sum(weights(source)[f"net.head.{name}"].numel() for name in ("weight", "bias"))
    total = record["model"]["parameters"]
    assert record["pretrained"]["trained"] == [
        f"frozen: backbone; trained: {learning:,} of {total:,} parameters"
    ]
    assert record["model"]["trained_parameters"] == learning
    assert record["model"]["image_size"] == [8, 8]
    assert [(d["part"], d["how"].split(";")[0]) for d in record["pretrained"]["differences"]] == [
        ("head", "kept")
    ]
    before, after = weights(source), weights(tmp_path / "run")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"net.head.weight", "net.head.bias"}


def test_annealing_ends_in_the_new_activation(source, tmp_path):
    record = tuned(tmp_path / "run", source, activation="gelu_learnable", model__anneal_activation=7)
    assert record["pretrained"]["swap"]["annealed"] is True
    assert record["activation"] == "gelu_learnable"
    net, card = load_network(tmp_path / "run")
    assert "anneal" not in card["network"]
    assert card["network"]["activation"] == "gelu_learnable"
    # What was learned of the new one along the way is kept.
    assert net.blocks[0].mlp.act.mu.abs().max() > 0


def test_annealing_follows_the_steps(source, tmp_path, monkeypatch):
    from vit_gelu.models.anneal import AnnealHandle

    seen = []
    set_alpha = AnnealHandle.set_alpha
    monkeypatch.setattr(
        AnnealHandle, "set_alpha", lambda self, alpha: (seen.append(alpha), set_alpha(self, alpha))[1]
    )
    tuned(tmp_path / "run", source, activation="gelu", model__anneal_activation=5, trainer__max_epochs=1)
    assert seen == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("batches", [4, 13])
def test_resumed_annealing_is_the_uninterrupted_one(source, tmp_path, monkeypatch, batches):
    """Stopped amid the annealing, and after it."""
    options = {
        "activation": "gelu_learnable",
        "model__anneal_activation": 9,
        "model__dropout": 0.1,
        "model__ema_decay": 0.9,
    }
    record = tuned(tmp_path / "whole", source, **options)
    moved = tmp_path / "moved"
    shutil.copytree(source, moved)
    train_until(monkeypatch, batches, tmp_path / "run", model__pretrained=moved, **FREE, **options)
    shutil.rmtree(moved)  # what the run began from is not needed any more
    again = tuned(tmp_path / "run", moved, "--ckpt_path", "last", **options)
    assert_same_weights(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "run")
    for key in ("val", "test", "activation"):
        assert again[key] == record[key]
    assert again["pretrained"]["swap"] == record["pretrained"]["swap"]
    assert again["model"] == {**record["model"], "name": "moved"}


def test_a_run_goes_on_only_as_it_began(source, tmp_path, monkeypatch):
    options = {"activation": "silu", "model__pretrained": source, **FREE}
    train_until(monkeypatch, 4, tmp_path / "run", **options)
    for change, message in (
        ({"activation": "relu"}, "activation = 'silu', this run 'relu'"),
        ({"model__dropout": 0.3}, "dropout = 0.0, this run 0.3"),
        ({"model__pretrained": tmp_path}, "the run began from"),
    ):
        with pytest.raises(ValueError, match=message):
            train(tmp_path / "run", "--ckpt_path", "last", **{**options, **change})


@pytest.mark.parametrize("model", ["timm/test_resnet", "timm/test_vit", "timm/test_convnext"])
def test_models_of_timm(tmp_path, model):
    record = train(
        tmp_path / "run", model__name=model, activation="silu", data__image_size=32, trainer__max_epochs=1,
        model__attention="auto", **FREE,
    )  # fmt: skip
    assert record["model"]["name"] == model
    assert record["activation"] == "silu"
    assert record["speed"]["flops_per_image"] > 0
    net, card = load_network(tmp_path / "run")
    kinds = {type(m).__name__.lower() for m in net.modules()}
    assert any("silu" in kind for kind in kinds)
    images = normalised(card, load_source("digits", image_size=32).test.images)
    with torch.no_grad():
        hits = (net(images).argmax(1) == load_source("digits").test.labels).sum()
    assert int(hits) == record["test"]["correct"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model__depth": 3}, r"--model\.depth 3: contradicts"),
        ({"model__pooling": "cls"}, r"--model\.pooling cls: contradicts"),
        ({"model__name": "vit_small"}, r"--model\.name vit_small: not with --model\.pretrained"),
        (
            {"model__activation_kwargs": '{"negative_slope": 0.2}'},
            r"--model\.activation_kwargs .*: needs --activation",
        ),
        ({"model__anneal_activation": 5}, r"--model\.anneal_activation 5: needs --activation"),
        (
            {"model__anneal_activation": 5, "activation": "relu"},
            r"--model\.anneal_activation 5: .* is relu already",
        ),
        (
            {"model__freeze": "backbone", "model__layer_decay": 0.7},
            r"--model\.layer_decay 0\.7: has no effect",
        ),
        ({"model__anneal_activation": 500, "activation": "gelu"}, r"must end before the training does"),
        ({"model__whiten_patches": "true"}, r"--model\.whiten_patches"),
        ({"activation": "swiglu"}, r"gated"),
        ({"model__freeze": "[blocks.9]"}, r"--model\.freeze: unknown part"),
        ({"model__layer_decay": 2}, r"--model\.layer_decay 2"),
        ({"model__warmup_steps": -1}, r"--model\.warmup_steps -1"),
    ],
)
def test_contradictions(source, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **{**FREE, "model__pretrained": source, **options})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model__name": "timm/resnet18x"}, r"--model\.name timm/resnet18x.*Did you mean"),
        ({"model__depth": 3}, r"--model\.depth 3: not an option of timm/test_resnet"),
        (
            {"model__whiten_patches": "true", "model__patch_dropout": 0.5, "model__depth": 3},
            r"--model\.depth 3, --model\.patch_dropout 0\.5, --model\.whiten_patches true: not options of timm/test_r"
            r"(.|\n)*--model\.depth null --model\.patch_dropout 0\.0 --model\.whiten_patches false",
        ),
        ({"model__pretrained": "vit.pth"}, r"--model\.pretrained vit\.pth: of timm/test_resnet only timm"),
        ({"model__attention": "explicit"}, r"--model\.attention explicit: not an option"),
    ],
)
def test_what_models_of_timm_do_not_take(tmp_path, options, message):
    base = {**FREE, "model__attention": "auto", "model__name": "timm/test_resnet", "data__image_size": 32}
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **{**base, **options})


def test_a_missing_checkpoint_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"--model\.pretrained .*no such file or folder"):
        train(tmp_path / "run", model__pretrained=tmp_path / "nothing.pth", **FREE)
    assert not (tmp_path / "run").exists()


def test_a_trainer_of_ones_own_loads_the_checkpoint_too(source):
    """Without the command line nothing may start from scratch in silence."""
    import lightning as L

    from vit_gelu.data import ImageData
    from vit_gelu.training.module import ClassificationModule

    module = ClassificationModule(pretrained=str(source), attention="explicit", lr=1e-12, weight_decay=0.0)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=1, accelerator="cpu", devices=1, enable_model_summary=False, **options)
    trainer.fit(module, datamodule=ImageData("digits", global_batch_size=64))
    before, _ = load_network(source)
    torch.testing.assert_close(
        dict(module.network.state_dict()), dict(before.state_dict()), rtol=0, atol=1e-6
    )
    assert module.checkpoint is None
