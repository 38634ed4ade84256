"""Lean MLPs: the same numbers, one hidden tensor kept, no matrix product done twice."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vit_gelu.activations import ACTIVATIONS
from vit_gelu.models import Mlp, VisionTransformer

ROWS, DIM, HIDDEN = 50, 12, 40


def both(activation, dropout=0.0, dtype=torch.float64):
    torch.manual_seed(0)
    fast = Mlp(DIM, HIDDEN, activation, dropout=dropout).to(dtype)
    lean = Mlp(DIM, HIDDEN, activation, dropout=dropout, memory="lean").to(dtype)
    lean.load_state_dict(fast.state_dict())
    return fast, lean


def gradients(mlp, autocast=False):
    x = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1)).to(mlp.fc1.weight.dtype)
    x.requires_grad_()
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = mlp(x)
    noise = torch.rand(3)  # what follows draws the same, too
    grads = torch.autograd.grad(out.float().square().sum(), [x, *mlp.parameters()])
    return [out, noise, *grads, torch.rand(3)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_same_output_gradients_and_noise(activation, dropout):
    fast, lean = both(activation, dropout)
    torch.testing.assert_close(gradients(lean), gradients(fast))


@pytest.mark.parametrize("activation", ["gelu", "gelu_learnable", "gelu_stochastic", "swiglu"])
def test_autocast(activation):
    fast, lean = both(activation, 0.1, torch.float32)
    torch.testing.assert_close(gradients(lean, True), gradients(fast, True))


def kept_hidden_tensors(mlp):
    """Distinct tensors with as many numbers as the hidden layer, or more, that autograd keeps."""
    kept = {}

    def pack(tensor):
        if tensor.numel() >= ROWS * HIDDEN and not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.data_ptr()] = tensor
        return tensor

    x = torch.randn(ROWS, DIM, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = mlp(x)
    out.sum().backward()
    return [t.numel() // ROWS for t in kept.values()]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_hidden_tensor_is_kept(activation):
    fast, lean = both(activation, 0.3)
    assert kept_hidden_tensors(lean) == [lean.fc1.out_features]
    assert len(kept_hidden_tensors(fast)) >= 2


def test_no_product_is_done_twice():
    counts = []
    for mlp in both("gelu"):
        with FlopCounterMode(display=False) as counter:
            mlp(torch.randn(ROWS, DIM, dtype=torch.float64)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 2 * ROWS * DIM * HIDDEN * (2 + 3)  # the input needs no gradient


@pytest.mark.parametrize("activation", ["gelu", "gelu_learnable", "swiglu"])
def test_compiles_as_one_graph(activation):
    fast, lean = both(activation)
    expected = gradients(fast)
    torch._dynamo.reset()
    lean.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients(lean), expected)


def test_reaches_every_block_and_the_description():
    vit = VisionTransformer(8, 4, embed_dim=8, depth=3, num_heads=1, mlp_memory="lean")
    assert [block.mlp.memory for block in vit.blocks] == ["lean"] * 3
    assert VisionTransformer(**vit.config).blocks[2].mlp.memory == "lean"


def test_without_gradients_nothing_is_recomputed(monkeypatch):
    monkeypatch.setattr("vit_gelu.models.layers.checkpoint", None)  # calling it would fail
    fast, lean = both("gelu")
    x = torch.randn(ROWS, DIM, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(fast(x), lean(x))
