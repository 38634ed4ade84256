"""Our own runs as checkpoints: the same network, from the folder or the file."""

import pytest
import torch

from tests.models.checkpoints import images, scrambled
from vit_gelu.models import VisionTransformer
from vit_gelu.models.pretrained import build_pretrained, read_pretrained, runs
from vit_gelu.training import checkpoint

NETWORK = {"image_size": 8, "patch_size": 4, "num_classes": 5, "embed_dim": 24, "depth": 2, "num_heads": 3}


def run_folder(path, **options):
    """What a run leaves behind, as far as it is read."""
    net = scrambled(VisionTransformer(**NETWORK, **options))
    card = {
        "schema": checkpoint.CARD_SCHEMA,
        "network": net.config,
        "data": {"name": "digits", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
        "seed": 3,
    }
    (path / "checkpoints").mkdir(parents=True)
    state = {f"net.{k}": v for k, v in net.state_dict().items()} | {"metric.count": torch.ones(1)}
    torch.save({checkpoint.CARD: card, "state_dict": state}, path / "checkpoints" / "last.ckpt")
    return net


def test_the_card_is_the_one_that_training_writes():
    assert (runs.CARD, runs.CARD_SCHEMA) == (checkpoint.CARD, checkpoint.CARD_SCHEMA)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "elu", "activation_kwargs": {"alpha": 0.3}, "dropout": 0.1, "drop_path": 0.2},
        {"activation": "gelu_learnable", "pooling": "mean", "register_tokens": 2},
        {"activation": "swiglu", "position_embedding": "sincos2d", "init": "mimetic"},
        {"activation": "torch.nn.CELU", "representation_size": 9},
    ],
    ids=str,
)
@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/last.ckpt"])
def test_same_network(options, place, tmp_path):
    net = run_folder(tmp_path / "run", **options)
    source = str(tmp_path / "run" / place)
    pretrained = read_pretrained(source)
    assert (pretrained.origin, pretrained.mean, pretrained.std) == (
        "vit_gelu",
        (0.1, 0.2, 0.3),
        (0.4, 0.5, 0.6),
    )
    assert not {"dropout", "drop_path", "attention", "seed"} & pretrained.options.keys()
    ours, changes = build_pretrained(pretrained)
    assert not changes
    assert ours.config["activation"] == net.config["activation"]
    assert ours.config["dropout"] == 0.0  # the next run's own affair
    torch.testing.assert_close(ours.eval()(images((8, 8))), net(images((8, 8))), rtol=0, atol=0)
    loaded, _ = checkpoint.load_network(source if place.endswith("ckpt") else str(tmp_path / "run"))
    torch.testing.assert_close(ours(images((8, 8))), loaded(images((8, 8))), rtol=0, atol=0)


def refused(change, match, id):
    return pytest.param(change, match, id=id)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        refused(lambda c: c["vit_gelu"].update(schema=99), "written by a newer vit_gelu", "schema"),
        refused(lambda c: c.pop("vit_gelu"), "is not a checkpoint of vit_gelu", "card"),
        refused(lambda c: c["state_dict"].pop("net.norm.bias"), "1 missing: norm.bias", "missing"),
        refused(
            lambda c: c["vit_gelu"].update(network={"name": "timm/resnet18"}), "holds timm/resnet18", "timm"
        ),
    ],
)
def test_refused(change, match, tmp_path):
    run_folder(tmp_path / "run")
    file = tmp_path / "run/checkpoints/last.ckpt"
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)
    with pytest.raises(ValueError, match=match):
        read_pretrained(str(tmp_path / "run"))


def test_broken_or_empty_folders(tmp_path):
    run_folder(tmp_path / "run")
    file = tmp_path / "run/checkpoints/last.ckpt"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"cannot be read as a checkpoint .truncated"):
        read_pretrained(str(tmp_path / "run"))
    file.rename(file.with_name("best.ckpt"))
    with pytest.raises(ValueError, match=r"a run folder without last.ckpt \(found: best.ckpt\)"):
        read_pretrained(str(tmp_path / "run"))
