"""The check of a device passes what is right and sees what is wrong."""

import itertools

import correctness
import pytest
import torch
from torch import nn

from vit_gelu.activations import build_activation

CPU = torch.device("cpu")


def asked(*argv: str):
    parsed = correctness.options().parse_args(["--mode", "eager", "--device", "cpu", *argv])
    parsed.argv = []
    return parsed


def test_this_processor_is_right():
    rows = [row for check in correctness.checks(asked(), CPU).values() for row in check()]
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
    (row,) = correctness.check_activations(["gelu"], dtype, "eager", CPU)
    assert row["error"] > 1


def test_wrong_attention_is_seen(monkeypatch):
    exact = nn.functional.scaled_dot_product_attention

    def unscaled(q, k, v, dropout_p=0.0):
        return exact(q, k, v, scale=0.1)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", unscaled)
    for attention, dtype in itertools.product(("explicit", "sdpa"), correctness.DTYPES):
        (row,) = correctness.check_network(attention, dtype, "eager", CPU)
        assert (row["error"] > 1) == (attention == "sdpa"), row


def test_what_there_was_no_time_for_is_listed(capsys):
    result = correctness.measure(asked("--time_limit", "-1", "--dtypes", "bf16"))
    assert (result["rows"], len(result["left_out"])) == ([], 3)
    correctness.show(result)
    assert (
        "left out, no time within --time_limit: ViT, attention explicit, bf16, eager"
        in capsys.readouterr().out
    )


def test_infinities_are_wrong():
    bound = torch.ones(2)
    assert correctness._worst(torch.tensor([1.0, float("nan")]), torch.zeros(2), bound) == float("inf")
