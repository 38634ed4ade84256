"""Bytes kept for backward against what pencil and paper say."""

import pytest
import torch
from torch import nn

from vit_gelu.activations import build_activation
from vit_gelu.bench.memory import kept_for_backward
from vit_gelu.models import VisionTransformer

N, D = 6, 64


def x_of(dtype=torch.float32):
    return torch.randn(N, D, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("name", "tensors", "with_next"),
    [("gelu", 1, 2), ("relu", 1, 1), ("tanh", 1, 1), ("identity", 0, 1), ("gelu_learnable", 1, 2)],
)
def test_single_activations(name, tensors, with_next, dtype):
    """GELU keeps its input; ReLU and tanh keep their output, which the next layer keeps as well."""
    module, x = build_activation(name), x_of(dtype)
    # σ = exp(log σ), one float32; for a float64 input μ and σ in float64 as well.
    scale = (20 if dtype == torch.float64 else 4) if name == "gelu_learnable" else 0
    kept = kept_for_backward(lambda: module(x), exclude=module.parameters())
    assert kept == N * D * x.itemsize * tensors + scale
    together = kept_for_backward(lambda: module(x), exclude=module.parameters(), also=lambda y: [y])
    assert together == N * D * x.itemsize * with_next + scale


def test_a_chain_counts_each_tensor_once():
    x = x_of()
    chain = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D), nn.ReLU())
    # x for fc1's weight, GELU's input, its output for fc2's weight, ReLU's output.
    expected = 4 * (N * D + N * 4 * D + N * 4 * D + N * D)
    assert kept_for_backward(lambda: chain(x), exclude=chain.parameters()) == expected
    weights = 4 * sum(p.numel() for p in chain.parameters() if p.ndim == 2)
    # fc1's weight is kept for the gradient of x, fc2's for that of GELU's output.
    assert kept_for_backward(lambda: chain(x)) == expected + weights


def test_a_view_keeps_its_whole_storage():
    x = x_of()
    y = x * 2  # not a leaf, so that the views are of one storage
    assert kept_for_backward(lambda: y[:, :1].sin()) == 4 * N * D
    assert kept_for_backward(lambda: y[:, : D // 2].sin() + y[:, D // 2 :].cos()) == 4 * N * D
    assert kept_for_backward(lambda: y.detach().sin()) == 0


def test_relu_keeps_less_than_gelu_in_a_vit_by_one_hidden_tensor_a_layer():
    image = torch.randn(3, 3, 8, 8)

    def kept(activation):
        net = VisionTransformer(
            8, 4, num_classes=5, embed_dim=16, depth=2, num_heads=2, activation=activation, pooling="mean"
        )
        return kept_for_backward(lambda: net(image), exclude=net.parameters())

    assert kept("gelu") - kept("relu") == 2 * (3 * 5 * 64 * 4)
