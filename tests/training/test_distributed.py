"""Two processes are one: they count what one counts, never padded, never averaged, and learn what one learns."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from tests.training import helpers, test_masked
from tests.training.helpers import ROOT, metrics, train, weights
from tests.training.test_fine_tuning import FREE

NODES = ["--trainer.num_nodes=2", "--trainer.strategy=ddp"]


@pytest.fixture(scope="module")
def odd_digits(tmp_path_factory):
    """Digits as an array file whose split sizes two processes cannot share evenly."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * 15).astype("uint8")
    path = tmp_path_factory.mktemp("data") / "odd.npz"
    np.savez(
        path,
        train_images=images[:600], train_labels=digits.target[:600],
        val_images=images[600:699], val_labels=digits.target[600:699],
        test_images=images[700:1001], test_labels=digits.target[700:1001],
    )  # fmt: skip
    return path


NODE = """
import os
import vit_gelu.cli.options, vit_gelu.training.run  # once for both: neither has used torch yet
from vit_gelu.cli import main

other = os.fork()
os.environ["NODE_RANK"] = "0" if other else "1"
if not other:
    os.dup2(2, 1)
for argv in {commands!r}:
    main(argv)
if other:
    assert os.waitpid(other, 0)[1] == 0
"""


def on_two_nodes(*commands):
    """Commands as they are started on each of two nodes, here both of them this machine; what the first one printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    done = subprocess.run(
        [sys.executable, "-c", NODE.format(commands=commands)],
        cwd=ROOT,
        env=os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "test top-1" not in done.stderr, "the second prints what the first one does"
    return done.stdout


def test_two_processes_are_one(odd_digits, tmp_path):
    """Counting, with a learning rate that changes nothing; a swap blended in; pictures drawn without labels."""
    counted = {
        "data__name": odd_digits,
        "data__global_batch_size": 64,
        "model__lr": 1e-30,
        "model__weight_decay": 0,
    }
    source = tmp_path / "source"
    train(source, activation="relu", model__pooling="mean", seed=5)
    tuned = FREE | {
        "model__pretrained": source,
        "activation": "silu",
        "model__anneal_activation": 4,
        "model__freeze": 1,
        "model__layer_decay": 0.7,
        "data__global_batch_size": 64,
        "data__mixup": 0.2,
        "trainer__max_epochs": 1,
    }
    masked = {"trainer__max_epochs": 1, "trainer__log_every_n_steps": 1}

    def made(name):
        return [json.loads((tmp_path / nodes / name / "record.json").read_text()) for nodes in ("one", "two")]

    def argv(name, door, options):
        given = helpers.arguments if door == "train" else test_masked.arguments
        return [door, *given(tmp_path / "two" / name, **options), *NODES]

    train(tmp_path / "one" / "counted", **counted)
    train(tmp_path / "one" / "tuned", **tuned)
    test_masked.pretrain(tmp_path / "one" / "masked", **masked)
    first = on_two_nodes(
        argv("counted", "train", counted), argv("tuned", "train", tuned), argv("masked", "pretrain", masked)
    )
    assert first.count("2 nodes of 1 x cpu") == 3
    assert "waiting for all nodes at 127.0.0.1:" in first
    assert first.count("test top-1") == 2

    one, two = made("counted")
    assert two["env"]["n_devices"] == 2
    assert two["order_hash"] == one["order_hash"]
    for split, n in (("val", 99), ("test", 301)):
        assert two[split]["n"] == one[split]["n"] == n
        assert two[split]["correct"] == one[split]["correct"]
        assert two[split]["loss"] == pytest.approx(one[split]["loss"], rel=1e-6)

    one, two = made("tuned")
    assert [two[key] for key in ("order_hash", "activation")] == [one["order_hash"], "silu"]
    assert two["test"]["n"] == one["test"]["n"]
    assert two["test"]["loss"] == pytest.approx(one["test"]["loss"], rel=1e-3)
    a, b, began = (weights(f) for f in (tmp_path / "one" / "tuned", tmp_path / "two" / "tuned", source))
    assert max((a[k] - b[k]).abs().max() for k in a) < 1e-3
    assert any(not torch.equal(a[k], began[k]) for k in a)

    one, two = made("masked")  # masks go by sample, so the processes' losses add up to that of one
    assert two["val"]["n"] == one["val"]["n"]
    assert two["val"]["loss"] == pytest.approx(one["val"]["loss"], rel=1e-3)
    losses = [
        [float(r["train_loss"]) for r in metrics(tmp_path / nodes / "masked") if r["train_loss"]]
        for nodes in ("one", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
