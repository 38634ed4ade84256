"""Initial weights: right distributions, and the same ones wherever two models agree."""

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from vit_gelu.activations import ACTIVATIONS
from vit_gelu.models import VisionTransformer
from vit_gelu.models.initialisation import mimetic_qkv_proj

SMALL = {"image_size": 16, "patch_size": 4, "num_classes": 7, "embed_dim": 48, "depth": 2, "num_heads": 3}
WIDE = {"patch_size": 8, "num_classes": 500, "embed_dim": 192, "depth": 1, "num_heads": 3}


def weights(**options) -> dict[str, torch.Tensor]:
    return dict(VisionTransformer(**{**SMALL, "seed": 0, **options}).named_parameters())


@pytest.mark.parametrize("activation", [name for name, spec in ACTIVATIONS.items() if not spec.gated])
def test_activations_share_all_other_weights(activation):
    reference, other = weights(), weights(activation=activation)
    assert reference.keys() <= other.keys()
    assert all(torch.equal(reference[name], other[name]) for name in reference)
    assert all(".mlp.act." in name for name in other.keys() - reference.keys())


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "swiglu"},
        {"num_classes": 3},
        {"depth": 3},
        {"register_tokens": 2},
        {"layer_scale": 0.1},
        {"stem": "resnet_stem"},
        {"stem": "conv"},
        {"representation_size": 11},
        {"pooling": "mean"},
    ],
    ids=str,
)
def test_parameters_of_equal_name_and_shape_are_equal(options):
    reference, other = weights(), weights(**options)
    shared = {n for n in reference.keys() & other.keys() if reference[n].shape == other[n].shape}
    if "stem" in options:  # same shape, but drawn for another number of inputs
        shared.remove("patch_embed.proj.bias")
    assert "blocks.1.attn.qkv.weight" in shared
    assert all(torch.equal(reference[name], other[name]) for name in shared)


def test_matrices_differ_from_each_other_and_between_seeds():
    a, b = weights(), weights(seed=1)
    for name in ("blocks.0.mlp.fc1.weight", "cls_token", "pos_embed", "patch_embed.proj.bias"):
        assert not torch.allclose(a[name], b[name])
    assert not torch.allclose(a["blocks.0.mlp.fc1.weight"], a["blocks.1.mlp.fc1.weight"])


@pytest.mark.parametrize("stem", ["patch", "conv", "resnet_stem"])
def test_global_generator(stem):
    torch.manual_seed(5)
    a = VisionTransformer(**{**SMALL, "stem": stem})
    b = VisionTransformer(**{**SMALL, "stem": stem})
    torch.manual_seed(5)
    c = VisionTransformer(**{**SMALL, "stem": stem})
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True))
    assert not torch.equal(a.head.weight, b.head.weight)

    before = torch.get_rng_state()  # a given seed leaves the generator alone
    d = VisionTransformer(**{**SMALL, "stem": stem}, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    e = VisionTransformer(**{**SMALL, "stem": stem}, seed=0)
    assert all(torch.equal(p, q) for p, q in zip(d.parameters(), e.parameters(), strict=True))


class Noisy(nn.Module):
    """An activation of a user's, with a random initial weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.linear.weight[0]


def test_random_weights_of_a_users_activation_follow_the_seed(monkeypatch):
    from vit_gelu.activations import registry

    monkeypatch.setitem(ACTIVATIONS, "noisy", registry.ActivationSpec("noisy", Noisy))
    torch.manual_seed(0)
    a = weights(activation="noisy")
    torch.manual_seed(1)
    b = weights(activation="noisy")
    name = "blocks.{}.mlp.act.linear.weight"
    assert torch.equal(a[name.format(0)], b[name.format(0)])
    assert not torch.equal(a[name.format(0)], a[name.format(1)])
    assert torch.equal(a["blocks.1.mlp.fc1.weight"], weights()["blocks.1.mlp.fc1.weight"])


def test_timm_distributions():
    theirs = TimmViT(img_size=64, reg_tokens=5, init_values=0.1, qk_norm=True, **WIDE)
    ours = VisionTransformer(image_size=64, register_tokens=5, layer_scale=0.1, qk_norm=True, **WIDE)
    reference = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        n, std = parameter.numel(), reference[name].std().item()
        assert abs(parameter.mean() - reference[name].mean()) <= 8 * std / n**0.5, name
        assert parameter.std().item() == pytest.approx(std, rel=8 / n**0.5), name
        assert parameter.abs().max().item() == pytest.approx(reference[name].abs().max().item(), rel=0.35), (
            name
        )


def test_jax_distributions():
    vit = VisionTransformer(image_size=64, init="jax", representation_size=300, **WIDE)
    p, block = dict(vit.named_parameters()), "blocks.0."
    # Xavier: uniform within ±√(6/(fan_in + fan_out)), of standard deviation √(2/(fan_in + fan_out)).
    for name, fans in [("attn.qkv", 2 * 192), ("attn.proj", 2 * 192), ("mlp.fc1", 960), ("mlp.fc2", 960)]:
        weight = p[f"{block}{name}.weight"]
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fans), rel=0.02)
        assert weight.abs().max().item() == pytest.approx(math.sqrt(6 / fans), rel=0.01)
    for name, fan_in in [("patch_embed.proj", 3 * 64), ("pre_logits.fc", 192)]:
        assert p[f"{name}.weight"].std().item() == pytest.approx(fan_in**-0.5, rel=0.02)
        # A normal cut at two of its own standard deviations, then widened to variance 1/fan_in.
        assert p[f"{name}.weight"].abs().max().item() == pytest.approx(2 / 0.8796 * fan_in**-0.5, rel=0.01)
    assert p["pos_embed"].std().item() == pytest.approx(0.02, rel=0.05)
    assert p[f"{block}mlp.fc1.bias"].std().item() == pytest.approx(1e-6, rel=0.15)
    for name in ("head.weight", "head.bias", "cls_token", "patch_embed.proj.bias", f"{block}attn.qkv.bias"):
        assert not p[name].any()


def test_mimetic_products():
    dim, heads = 96, 4
    streams = [torch.Generator().manual_seed(s) for s in (0, 1)]
    qkv, proj = mimetic_qkv_proj(dim, heads, *streams)
    eye, z = torch.eye(dim), torch.randn(dim, dim) / dim**0.5
    q, k, v = qkv.view(3, heads, dim // heads, dim)
    # Values and projection: rows x of tokens become x·vᵀ·projᵀ, which must be 0.4·Z − 0.4·I.
    product = v.reshape(dim, dim).T @ proj.T
    residual = (product + 0.4 * eye) / 0.4
    assert residual.std().item() * dim**0.5 == pytest.approx(1, rel=0.05)
    assert abs(residual.diagonal().mean().item()) < 0.05
    # Queries and keys, per head: x·qᵀ·k·xᵀ, the best approximation of 0.7·Z + 0.7·I of the head's rank.
    spectrum = torch.linalg.svdvals(0.7 * z + 0.7 * eye)
    for head in range(heads):
        product = q[head].T @ k[head]
        values = torch.linalg.svdvals(product)
        assert values[dim // heads :].max() < 1e-4
        torch.testing.assert_close(values[: dim // heads], spectrum[: dim // heads], rtol=0.15, atol=0.0)
        # Its diagonal stands out above entries of noise.
        off = product[~eye.bool()]
        assert product.diagonal().mean() > 0.2
        assert product.diagonal().mean() > 4 * off.std()
    assert not torch.allclose(q[0].T @ k[0], q[1].T @ k[1], atol=0.1)


def test_mimetic_in_the_model():
    plain, mimetic = weights(), weights(init="mimetic")
    changed = {name for name in plain if not torch.equal(plain[name], mimetic[name])}
    assert changed == {f"blocks.{i}.attn.{part}.weight" for i in (0, 1) for part in ("qkv", "proj")}
    v = mimetic["blocks.0.attn.qkv.weight"][96:]
    product = v.T @ mimetic["blocks.0.attn.proj.weight"].T
    assert product.diagonal().mean().item() == pytest.approx(-0.4, abs=0.05)
    assert abs((mimetic["blocks.0.attn.qkv.weight"] - mimetic["blocks.1.attn.qkv.weight"]).max()) > 0.1


@pytest.mark.parametrize("init", ["timm", "jax", "mimetic"])
def test_zero_head_makes_all_classes_equally_likely(init):
    vit = VisionTransformer(**SMALL, zero_init_head=True, init=init)
    assert torch.equal(vit(torch.randn(2, 3, 16, 16)), torch.zeros(2, 7))
