"""Two processes count what one counts: never padded, never averaged."""

import json

import pytest

from tests.training.helpers import arguments, in_process, train

DDP = ["--trainer.devices=2", "--trainer.strategy=ddp"]


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


def test_counts_and_order_equal_one_process(odd_digits, tmp_path):
    """With a learning rate that changes nothing. That two processes learn what one does: test_fine_tuning.py."""
    options = {"data__name": odd_digits, "data__global_batch_size": 64, "trainer__max_epochs": 2}
    frozen = options | {"model__lr": 1e-30, "model__weight_decay": 0}
    one = train(tmp_path / "one", **frozen)
    done = in_process(["train", *arguments(tmp_path / "two", **frozen), *DDP], timeout=300)
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two" / "record.json").read_text())
    assert two["env"]["n_devices"] == 2
    assert two["order_hash"] == one["order_hash"]
    for split, n in (("val", 99), ("test", 301)):
        assert two[split]["n"] == one[split]["n"] == n
        assert two[split]["correct"] == one[split]["correct"]
        assert two[split]["loss"] == pytest.approx(one[split]["loss"], rel=1e-6)
