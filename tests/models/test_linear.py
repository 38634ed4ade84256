"""Linear layers as they are compiled for a CPU, against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vit_gelu.models.linear import Linear, may_be_split

SHAPE = (4, 7, 12)


def gradients(layer, x, autocast):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = layer(x)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y)
    given = [p for p in (x, *layer.parameters()) if p.requires_grad]
    return y, torch.autograd.grad((y.float() * weights).sum(), given)


def layers(**options):
    torch.manual_seed(0)
    ours = Linear(12, 20, **options)
    theirs = nn.Linear(12, 20, **options)
    theirs.load_state_dict(ours.state_dict())
    torch._dynamo.reset()
    return torch.compile(ours, fullgraph=True, backend="aot_eager"), ours, theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [SHAPE, (5, 12), (2, 3, 4, 12)])
def test_compiled_equals_torchs(shape, bias):
    compiled, ours, theirs = layers(bias=bias)
    x = torch.randn(shape, requires_grad=True)
    for layer in (compiled, ours):
        torch.testing.assert_close(gradients(layer, x, False), gradients(theirs, x, False))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), theirs(x))


def test_compiled_under_autocast():
    """In bfloat16, but the bias's gradient is summed in float32: closer to the truth than torch's."""
    compiled, _, theirs = layers()
    x = torch.randn(64, 50, 12, requires_grad=True)
    y, mine = gradients(compiled, x, True)
    y_theirs, others = gradients(theirs, x, True)
    assert y.dtype == y_theirs.dtype == torch.bfloat16
    assert [g.dtype for g in mine] == [torch.float32] * 3
    _, exact = gradients(theirs, x, False)
    torch.testing.assert_close(y, y_theirs, rtol=0.02, atol=0.02)
    for got, other, true in zip(mine, others, exact, strict=True):
        error, others_error = ((g - true).norm() / true.norm() for g in (got, other))
        assert error < max(1.05 * others_error, 0.003)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_what_is_frozen_gets_no_gradient(frozen):
    compiled, ours, theirs = layers()
    for layer in (ours, theirs):
        getattr(layer, frozen).requires_grad_(False)
    x = torch.randn(SHAPE)  # nor do the images
    torch.testing.assert_close(gradients(compiled, x, False), gradients(theirs, x, False))


def test_export_shows_one_linear_layer():
    exported = torch.export.export(Linear(3, 2), (torch.zeros(4, 3),))
    assert [n.target for n in exported.graph.nodes if n.op == "call_function"] == [
        torch.ops.aten.linear.default
    ]


def test_only_plain_layers_may_be_split():
    assert may_be_split(Linear(3, 2))
    hooked, parametrised = Linear(3, 2), Linear(3, 2)
    hooked.register_forward_hook(lambda module, inputs, output: output + 1)
    torch.nn.utils.parametrizations.weight_norm(parametrised)
    assert not may_be_split(hooked)
    assert not may_be_split(parametrised)
    x = torch.randn(2, 3)
    torch.testing.assert_close(parametrised(x), F.linear(x, parametrised.weight, parametrised.bias))
