"""Errors that were put in are found; none are found where there are none."""

import pytest
import torch

from vit_gelu.activations import build_activation
from vit_gelu.bench import exactness
from vit_gelu.bench.exactness import errors_against_float64

X = torch.randn(7, 5, 8, generator=torch.Generator().manual_seed(0))
GRAD = torch.randn(7, 5, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("piece", [1, 80, 10**9])
def test_a_known_error(monkeypatch, piece):
    monkeypatch.setattr(exactness, "PIECE", piece)
    module = build_activation("relu")

    def wrong(x):
        bad = torch.zeros_like(x)
        bad[6, 4, 7] = 0.25
        return module(x) + bad * (1 + x)  # value off by 0.25(1 + x) and slope by 0.25 at one place

    errors = errors_against_float64(wrong, module, X, GRAD)
    assert errors["forward"] == pytest.approx(0.25 * abs(1 + float(X[6, 4, 7])), rel=1e-6)
    assert errors["gradient"] == pytest.approx(0.25 * abs(float(GRAD[6, 4, 7])), rel=1e-6)
    assert errors["forward_rounded"] == 0
    assert errors["parameters"] is None
    right = errors_against_float64(module, module, X, GRAD)
    assert (right["forward"], right["gradient"]) == (0, 0)


def test_half_precision_is_judged_against_its_own_rounding():
    module = build_activation("gelu")
    x = X.bfloat16()
    errors = errors_against_float64(module, module, x, GRAD.bfloat16())
    exact = torch.nn.functional.gelu(x.double())
    assert errors["forward_rounded"] == float((exact.bfloat16().double() - exact).abs().max())
    assert errors["forward_rounded"] <= errors["forward"] <= 1.01 * errors["forward_rounded"]


def test_gradients_of_parameters():
    module = build_activation("gelu_learnable", num_channels=8)
    assert errors_against_float64(module, module, X, GRAD)["parameters"] < 1e-5

    def wrong(x):
        return module(x) + 0.1 * module.mu  # d/dmu off by 0.1 in every element

    assert errors_against_float64(wrong, module, X, GRAD)["parameters"] > 0.01


def test_nan_is_not_lost():
    module = build_activation("relu")
    errors = errors_against_float64(lambda x: module(x) * float("nan"), module, X, GRAD)
    assert errors["forward"] != errors["forward"]
