"""The parts: attention against a loop, stochastic depth, gated MLPs, positions."""

import math

import pytest
import torch
from torch import nn

from vit_gelu.activations import ACTIVATIONS
from vit_gelu.models import Attention, Block, DropPath, LayerScale, Mlp, PatchEmbed, VisionTransformer
from vit_gelu.models.attention import resolve_attention
from vit_gelu.models.layers import hidden_size
from vit_gelu.models.position import sincos2d


@pytest.mark.parametrize("attention", ["explicit", "sdpa"])
def test_attention_is_the_papers(attention):
    """Eq. 5-8, one head and one query at a time."""
    torch.manual_seed(0)
    layer = Attention(12, 3, attention=attention).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    heads = torch.zeros(2, 5, 12, dtype=torch.float64)
    for image in range(2):
        q, k, v = layer.qkv(x[image]).split(12, dim=-1)
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            for i in range(5):
                scores = torch.stack([q[i, part] @ k[j, part] / math.sqrt(4) for j in range(5)])
                chances = scores.exp() / scores.exp().sum()
                heads[image, i, part] = sum(chances[j] * v[j, part] for j in range(5))
    torch.testing.assert_close(layer(x), layer.proj(heads))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_implementations_agree(qk_norm):
    torch.manual_seed(0)
    layer = Attention(24, 3, qk_norm=qk_norm).double()
    x = torch.randn(3, 7, 24, dtype=torch.float64, requires_grad=True)
    results = []
    for kernel in ("explicit", "sdpa", "auto"):
        layer.set_kernels(kernel, kernel)
        out = layer(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), [x, layer.qkv.weight])))
    torch.testing.assert_close(results[0], results[1])
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True))  # auto on a CPU


def test_attention_dropout_applies_to_the_weights_in_training_only():
    torch.manual_seed(0)
    for attention in ("explicit", "sdpa"):
        layer = Attention(8, 2, attention_dropout=0.5, attention=attention)
        x = torch.randn(1, 6, 8)
        assert not torch.equal(layer(x), layer(x))
        assert torch.equal(layer.eval()(x), layer(x))


def test_the_rule_for_attention():
    assert resolve_attention("auto", 256, "cpu") == "explicit"
    assert resolve_attention("auto", 257, "cpu") == "sdpa"
    assert resolve_attention("auto", 65, "cuda") == "sdpa"
    assert resolve_attention("explicit", 10_000, "cuda") == "explicit"


def test_drop_path_keeps_the_expectation_and_drops_whole_samples():
    torch.manual_seed(0)
    out = DropPath(0.3)(torch.ones(20_000, 2, 3))
    per_sample = out.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    kept = per_sample[:, 0] != 0
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / 0.7))
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.015)  # 4.6 standard deviations


def test_drop_path_scales_bfloat16_by_the_right_number():
    x = torch.full((4_000, 300), 1.0).mul(torch.linspace(1, 2, 300)).bfloat16()
    kept = DropPath(0.1)(x).float()
    kept = kept[kept[:, 0] != 0].mean()
    assert (kept / x.float().mean()).item() == pytest.approx(1 / 0.9, rel=3e-4)  # 1/0.9 rounds to 0.2 % less


def test_drop_path_is_off_in_evaluation():
    x = torch.randn(4, 3)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0)(x) is x


def test_drop_path_grows_linearly_with_depth():
    vit = VisionTransformer(8, 4, embed_dim=8, depth=5, num_heads=1, drop_path=0.2)
    for branch in ("drop_path1", "drop_path2"):
        rates = [getattr(block, branch).p for block in vit.blocks]
        assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_a_block_whose_branches_are_scaled_to_nothing_is_the_identity():
    block = Block(12, 3, 24, layer_scale=1e-30)
    x = torch.randn(2, 5, 12)
    assert torch.equal(block(x), x)


def test_layer_scale_is_per_channel():
    layer = LayerScale(3)
    with torch.no_grad():
        layer.gamma.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert layer(torch.ones(2, 2, 3))[1, 1].tolist() == [1.0, 2.0, 3.0]


def test_patches_are_in_row_major_order():
    embed = PatchEmbed((4, 6), (2, 2), 1, 1)
    with torch.no_grad():
        embed.proj.weight.fill_(0.25)
        embed.proj.bias.zero_()
    image = torch.arange(6.0).view(2, 3).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert embed(image[None, None]).flatten().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("bias", [True, False])
def test_patches_times_a_matrix_is_the_convolution(bias):
    torch.manual_seed(0)
    embed = PatchEmbed((8, 12), (4, 2), 3, 5, bias=bias).double()
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64, requires_grad=True)
    results = []
    for out in (embed(x), embed.proj(x).flatten(2).mT):
        results.append((out, *torch.autograd.grad(out.square().sum(), [x, *embed.parameters()])))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(("grid", "dim"), [((3, 5), 8), ((4, 4), 64)])
def test_sincos2d(grid, dim):
    table = sincos2d(grid, dim)
    assert table.dtype == torch.float32
    m = dim // 4
    for row in range(grid[0]):
        for column in range(grid[1]):
            expected = [
                function(position / 10_000 ** (i / m))
                for position, function in (
                    (column, math.sin),
                    (column, math.cos),
                    (row, math.sin),
                    (row, math.cos),
                )
                for i in range(m)
            ]
            assert table[row * grid[1] + column].tolist() == pytest.approx(expected, abs=1e-7)


def test_sincos2d_in_the_model_is_fixed_and_leaves_the_class_token_alone():
    vit = VisionTransformer(8, 4, embed_dim=8, depth=1, num_heads=1, position_embedding="sincos2d")
    assert "pos_embed" not in dict(vit.named_parameters())
    assert not vit.pos_embed[0, 0].any()
    torch.testing.assert_close(vit.pos_embed[0, 1:], sincos2d((2, 2), 8))


def test_without_position_embedding_patches_may_be_shuffled():
    options = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
    image = torch.randn(1, 3, 8, 8)
    shuffled = torch.cat([image[..., 4:], image[..., :4]], dim=-1)
    blind = VisionTransformer(8, 4, position_embedding="none", **options)
    torch.testing.assert_close(blind(image), blind(shuffled), rtol=1e-5, atol=1e-6)
    fixed = VisionTransformer(8, 4, position_embedding="sincos2d", **options)
    assert not torch.allclose(fixed(image), fixed(shuffled), atol=1e-4)


@pytest.mark.parametrize("dim", [16, 24, 48, 64, 96, 128, 192, 256, 384, 768, 1024, 1280])
@pytest.mark.parametrize("mlp_ratio", [2.0, 4.0])
def test_gated_mlps_have_as_many_parameters(dim, mlp_ratio):
    def count(activation):
        with torch.device("meta"):
            vit = VisionTransformer(
                32, 4, embed_dim=dim, depth=6, num_heads=1, mlp_ratio=mlp_ratio, activation=activation
            )
        return sum(p.numel() for p in vit.blocks.parameters())

    assert count("swiglu") == pytest.approx(count("gelu"), rel=0.01)


@pytest.mark.parametrize("dim", [128, 192, 256, 384, 768, 1024, 1280])
def test_gated_hidden_sizes_suit_the_hardware(dim):
    assert hidden_size(dim, 4, gated=True) % 8 == 0


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_mlp_is_the_composition_of_its_parts(name):
    torch.manual_seed(0)
    mlp = Mlp(6, 10, name).double().eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    torch.testing.assert_close(mlp(x), mlp.act(hidden) @ mlp.fc2.weight.T + mlp.fc2.bias)
    assert mlp.fc1.out_features == (20 if ACTIVATIONS[name].gated else 10)


def test_mlp_with_a_users_own_gated_module(monkeypatch):
    class Gate(nn.Module):
        gated = True

        def forward(self, x):
            a, b = x.chunk(2, dim=-1)
            return a * b

    from vit_gelu.activations.registry import ActivationSpec

    monkeypatch.setitem(ACTIVATIONS, "gate", ActivationSpec("gate", Gate))
    vit = VisionTransformer(8, 4, embed_dim=96, depth=1, num_heads=3, activation="gate")
    plain = VisionTransformer(8, 4, embed_dim=96, depth=1, num_heads=3)
    parameters = [sum(p.numel() for p in model.parameters()) for model in (vit, plain)]
    assert parameters[0] == pytest.approx(parameters[1], rel=0.01)
    assert vit(torch.randn(2, 3, 8, 8)).isfinite().all()
