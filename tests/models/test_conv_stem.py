"""The stem of convolutions: against the same network out of torch's and timm's parts; what it asks of a patch."""

import math
from itertools import pairwise

import pytest
import torch
from timm.layers import LayerNorm2d
from torch import nn

from vit_gelu.models import ConvEmbed, VisionTransformer, build_vit
from vit_gelu.models.swap import swap_activations

SIZE = {"num_classes": 5, "embed_dim": 24, "depth": 1, "num_heads": 3, "seed": 0}


def reference(embed: ConvEmbed, widths: list[int]) -> nn.Sequential:
    """Channels first throughout, with timm's norm over channels."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            LayerNorm2d(after, eps=1e-6),
            nn.ReLU(),
        ]
    net = nn.Sequential(*layers, nn.Conv2d(widths[-1], widths[-1], 1))
    net.load_state_dict(dict(zip(net.state_dict(), embed.state_dict().values(), strict=True)))
    return net


@pytest.mark.parametrize(
    ("patch_size", "widths"), [(2, [3, 24]), (4, [3, 12, 24]), (8, [3, 6, 12, 24]), (16, [3, 3, 6, 12, 24])]
)
@pytest.mark.parametrize("height", [16, 32])
def test_against_torch_and_timm(patch_size, widths, height):
    torch.manual_seed(0)
    embed = ConvEmbed((height, 32), (patch_size, patch_size), 3, 24)
    with torch.no_grad():
        for parameter in embed.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs = reference(embed, widths)
    x = torch.randn(4, 3, height, 32)
    mine = embed(x)
    assert mine.shape == (4, embed.num_patches, 24)
    assert embed.grid_size == (height // patch_size, 32 // patch_size)
    expected = theirs(x).flatten(2).mT
    torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(expected)
    (mine * weights).sum().backward()
    (expected * weights).sum().backward()
    for (name, p), q in zip(embed.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4 * float(q.grad.abs().max()), msg=name)


def test_a_token_sees_beyond_its_patch_and_its_own_image_alone():
    embed = ConvEmbed((32, 32), (4, 4), 3, 24)
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    embed(x)[0, 8 * 3 + 4].sum().backward()  # row 3, column 4
    seen = x.grad[0].abs().sum(0) > 0
    assert not x.grad[1].any()
    rows, columns = (torch.nonzero(seen.any(dim)).flatten().tolist() for dim in (1, 0))
    # Two convolutions of stride 2: pixels 4i - 3 to 4i + 3.
    assert rows == list(range(9, 16))
    assert columns == list(range(13, 20))


@pytest.mark.parametrize(
    ("image_size", "patch_size", "message"),
    [
        (32, 1, r"patch_size 1: --model.stem conv .*; valid: 2, 4, 8, 16, 32"),
        (24, 6, r"patch_size 6: --model.stem conv .*; valid: 2, 4, 8"),
        (32, [4, 2], r"patch_size \[4, 2\]: --model.stem conv .*; valid: 2, 4, 8, 16, 32"),
        (15, 5, r"valid: none for this size"),
        (32, 5, r"patch_size 5 does not divide the image size 32"),
    ],
)
def test_patches_that_no_halving_makes(image_size, patch_size, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(image_size, patch_size, stem="conv", **SIZE)


def test_norms_and_projection_follow_the_model():
    net = VisionTransformer(32, 4, stem="conv", norm_eps=1e-3, pre_norm=True, **SIZE)
    assert {unit.norm.eps for unit in net.patch_embed.convs} == {1e-3}
    assert net.patch_embed.proj.bias is None


def test_weights_are_drawn_by_name_and_wide_enough():
    """A kernel's deviation is that of a uniform draw, 1/√(3·fan_in), or with jax that of a normal, 1/√fan_in."""
    options = {"image_size": 32, "patch_size": 4, "stem": "conv", "seed": 0}
    for init, factor in (("timm", math.sqrt(3)), ("jax", 1.0)):
        net = build_vit("vit_tiny", init=init, depth=1, **options)
        for unit in net.patch_embed.convs:
            fan_in = unit.conv.weight[0].numel()
            assert unit.conv.weight.std().item() == pytest.approx(1 / (factor * fan_in**0.5), rel=0.05)
            assert (unit.norm.weight == 1).all()
            assert (unit.norm.bias == 0).all()


def test_a_swap_means_the_mlps_and_says_what_stays():
    built = VisionTransformer(32, 4, stem="conv", activation="silu", **SIZE)
    swapped = VisionTransformer(32, 4, stem="conv", **SIZE)
    report = swap_activations(swapped, "silu")
    assert any("2 relu (patch_embed.convs.0.act" in phrase for phrase in report.left)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(swapped.eval()(x), built.eval()(x))


@pytest.mark.parametrize("patch_size", [2, 8])
def test_a_bare_file_tells(patch_size):
    from vit_gelu.models.pretrained.infer import infer_options

    net = VisionTransformer(32, patch_size, in_channels=2, stem="conv", **SIZE)
    options, _ = infer_options(net.state_dict(), "timm", "x", num_heads=3)
    assert options["stem"] == "conv"
    assert (options["patch_size"], options["in_channels"]) == ([patch_size] * 2, 2)
    VisionTransformer(**options).load_state_dict(net.state_dict(), strict=True)
