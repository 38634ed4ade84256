"""The check of a device passes what is right and sees what is wrong."""

import correctness
import pytest
import torch
from torch import nn

from vit_gelu.activations import build_activation

CPU = torch.device("cpu")


def asked(*argv: str):
    return correctness.options().parse_args(["--mode", "eager", "--device", "cpu", *argv])


def test_this_processor_is_right():
    rows = correctness.check_activations(asked(), CPU) + correctness.check_network(asked(), CPU)
    assert len(rows) == 3 * (len(correctness.ACTIVATIONS) + 2)
    assert {r["what"] for r in rows if r["error"] > 1} == set()


@pytest.mark.parametrize(
    ("dtype", "wrong"),
    [
        ("float32", lambda: build_activation("gelu_tanh")),
        ("float32", lambda: nn.Sequential(nn.GELU(), nn.Hardtanh(-0.17, 8.9999))),
        ("bf16", lambda: build_activation("gelu_sigmoid")),
        ("fp16", lambda: build_activation("silu")),
    ],
)
def test_a_wrong_activation_is_seen(monkeypatch, dtype, wrong):
    right = correctness.activation_results

    def swapped(each, call, x, upstream):
        if x.dtype is not torch.float64:
            each.acts["gelu"] = wrong()
        return right(each, call, x, upstream)

    monkeypatch.setattr(correctness, "activation_results", swapped)
    (row,) = correctness.check_activations(asked("--activations", "gelu", "--dtypes", dtype), CPU)
    assert row["error"] > 1


def test_wrong_attention_is_seen(monkeypatch):
    exact = nn.functional.scaled_dot_product_attention

    def unscaled(q, k, v, dropout_p=0.0):
        return exact(q, k, v, scale=0.1)

    monkeypatch.setattr("vit_gelu.models.attention.F.scaled_dot_product_attention", unscaled)
    rows = correctness.check_network(asked(), CPU)
    assert all((r["error"] > 1) == r["what"].endswith("sdpa") for r in rows)


def test_infinities_are_wrong():
    bound = torch.ones(2)
    assert correctness._worst(torch.tensor([1.0, float("nan")]), torch.zeros(2), bound) == float("inf")
