"""Two processes count what one counts: never padded, never averaged."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.training.helpers import arguments, in_process, train

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


def on_two_nodes(argv):
    """A command as it is started on each of two nodes, here both of them this machine; what each one printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def start(rank):
        node = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": str(rank)}
        return in_process(argv, timeout=300, env=node)

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(start, range(2)))
    for node in done:
        assert node.returncode == 0, node.stderr
    return [node.stdout for node in done]


def test_counts_and_order_equal_one_process(odd_digits, tmp_path):
    """With a learning rate that changes nothing. That two processes learn what one does: test_fine_tuning.py."""
    options = {"data__name": odd_digits, "data__global_batch_size": 64, "trainer__max_epochs": 2}
    frozen = options | {"model__lr": 1e-30, "model__weight_decay": 0}
    one = train(tmp_path / "one", **frozen)
    first, second = on_two_nodes(["train", *arguments(tmp_path / "two", **frozen), *NODES])
    assert "2 nodes of 1 x cpu" in first
    assert "waiting for all nodes at 127.0.0.1:" in first
    assert "test top-1" in first
    assert not second
    two = json.loads((tmp_path / "two" / "record.json").read_text())
    assert two["env"]["n_devices"] == 2
    assert two["order_hash"] == one["order_hash"]
    for split, n in (("val", 99), ("test", 301)):
        assert two[split]["n"] == one[split]["n"] == n
        assert two[split]["correct"] == one[split]["correct"]
        assert two[split]["loss"] == pytest.approx(one[split]["loss"], rel=1e-6)
