"""The activation that was asked for is the one that is trained, by every door."""

import pytest
import yaml

from tests.training.helpers import train, weights
from vit_gelu.activations import ACTIVATIONS, build_activation
from vit_gelu.models import VisionTransformer

FAST = {"trainer__max_epochs": 1, "trainer__limit_train_batches": 2, "model__depth": 3}


def activation_types(out):
    """Types of the activations in the network that the checkpoint rebuilds to, one per block."""
    from vit_gelu.training import load_network

    net, card = load_network(out)
    acts = [block.mlp.act for block in net.blocks]
    assert len({id(a) for a in acts}) == len(acts), "blocks share one activation object"
    return card["network"]["activation"], {type(a) for a in acts}


def check(out, record, name):
    assert record["activation"] == name
    saved, types = activation_types(out)
    assert saved == name
    assert types == {type(build_activation(name))}
    assert yaml.safe_load((out / "config.yaml").read_text())["model"]["activation"] == name


def test_by_flag(tmp_path):
    check(tmp_path / "run", train(tmp_path / "run", activation="relu", **FAST), "relu")


def test_by_dotted_flag(tmp_path):
    check(tmp_path / "run", train(tmp_path / "run", model__activation="elu", **FAST), "elu")


def test_by_yaml(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {activation: silu}\n")
    record = train(tmp_path / "run", "--config", str(recipe), **FAST)
    check(tmp_path / "run", record, "silu")


def test_flag_after_yaml_wins_and_yaml_after_flag_wins(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {activation: silu}\n")
    check(
        tmp_path / "a", train(tmp_path / "a", "--config", str(recipe), "--activation", "relu", **FAST), "relu"
    )
    check(tmp_path / "b", train(tmp_path / "b", "--activation=relu", "--config", str(recipe), **FAST), "silu")


def test_by_default(tmp_path):
    check(tmp_path / "run", train(tmp_path / "run", **FAST), "gelu")


def test_by_saved_config(tmp_path):
    train(tmp_path / "first", activation="mish", seed=5, **FAST)
    from vit_gelu.cli.train import main

    assert main(["--config", str(tmp_path / "first" / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    from vit_gelu.training import read_record

    record = read_record(tmp_path / "again")
    check(tmp_path / "again", record, "mish")
    assert record["seed"] == 5


def test_by_import_path_with_options(tmp_path):
    record = train(
        tmp_path / "run",
        activation="torch.nn.LeakyReLU",
        model__activation_kwargs="{negative_slope: 0.25}",
        **FAST,
    )
    assert record["activation"] == "torch.nn.LeakyReLU"
    from vit_gelu.training import load_network

    net, _ = load_network(tmp_path / "run")
    assert [block.mlp.act.negative_slope for block in net.blocks] == [0.25] * 3


def test_the_arm_is_a_name_and_nothing_else(tmp_path):
    plain, named = train(tmp_path / "a", **FAST), train(tmp_path / "b", arm="my gelu", **FAST)
    assert (plain["arm"], named["arm"]) == ("", "my gelu")
    assert plain["config_hash"] == named["config_hash"]
    assert plain["test"] == named["test"]
    assert yaml.safe_load((tmp_path / "b" / "config.yaml").read_text())["arm"] == "my gelu"


def test_seed_by_flag_dotted_and_yaml(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed_everything: 9\n")
    assert train(tmp_path / "a", seed=7, **FAST)["seed"] == 7
    assert train(tmp_path / "b", "--config", str(recipe), **FAST)["seed"] == 9
    assert train(tmp_path / "c", "--config", str(recipe), "--seed=2", **FAST)["seed"] == 2


def test_activations_at_one_seed_share_weights_order_and_augmentation(tmp_path):
    quiet = FAST | {"model__lr": 1e-12, "model__weight_decay": 0, "seed": 11}
    names = ["gelu", "gelu_stochastic", "prelu", "gelu_learnable"]
    records = {n: train(tmp_path / n, activation=n, **quiet) for n in names}
    assert len({r["order_hash"] for r in records.values()}) == 1
    reference = weights(tmp_path / "gelu")
    for name in names[1:]:
        other = weights(tmp_path / name)
        for key, value in reference.items():
            assert (value - other[key]).abs().max() < 1e-6, (name, key)
    assert train(tmp_path / "other", **(quiet | {"seed": 12}))["order_hash"] != records["gelu"]["order_hash"]


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation_overfits_one_batch(name):
    """64 digits, learned by heart."""
    import torch
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images[:64], dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target[:64])
    net = VisionTransformer(
        image_size=8, patch_size=4, in_channels=1, num_classes=10, embed_dim=48, depth=1, num_heads=3,
        activation=name, seed=0,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0)
    torch.manual_seed(0)
    for _ in range(400):
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.005:
            break
    net.eval()
    assert torch.nn.functional.cross_entropy(net(images), labels).item() < 0.01


def test_same_seed_same_losses_and_own_config_repeats(tmp_path):
    from tests.training.helpers import assert_same_weights, metrics
    from vit_gelu.cli.train import main

    train(tmp_path / "a", activation="gelu_stochastic", seed=1)
    train(tmp_path / "b", activation="gelu_stochastic", seed=1)
    assert main(["--config", str(tmp_path / "a" / "config.yaml"), "--out", str(tmp_path / "c")]) == 0
    for other in ("b", "c"):
        assert metrics(tmp_path / "a") == metrics(tmp_path / other)
        assert_same_weights(weights(tmp_path / "a"), weights(tmp_path / other))


def test_help_names_only_options_that_exist(capsys):
    import re

    from vit_gelu.cli import train as command
    from vit_gelu.cli.options import build_parser

    assert command.main(["--help"]) == 0
    text = capsys.readouterr().out
    known = {*build_parser().option_names(), "--resume", "--help"}
    assert set(re.findall(r"--[\w.]+", text)) <= known
    assert len(text.splitlines()) < 70


def test_every_shipped_recipe_parses():
    from vit_gelu.cli.configs import shipped_configs
    from vit_gelu.cli.options import build_parser

    recipes = shipped_configs()
    assert "digits" in recipes
    assert "cifar10" in recipes
    for path in recipes.values():
        build_parser().parse_args(["--config", str(path)])
