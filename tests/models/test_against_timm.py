"""Same weights, same logits, same gradients as timm's VisionTransformer, for every option that timm has."""

from functools import partial

import pytest
import timm
import torch
from timm.layers import GluMlp, SwiGLUPacked, set_fused_attn
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from vit_gelu.models import VIT_SIZES, VisionTransformer, build_vit

SMALL = {"num_classes": 7, "embed_dim": 48, "depth": 3, "num_heads": 3}
OURS = {"image_size": 16, "patch_size": 4, **SMALL}
TIMM = {"img_size": 16, "patch_size": 4, **SMALL}


def scrambled(model: nn.Module) -> nn.Module:
    """Weights large enough that every part of the model shows in its output."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def images(h: int = 16, w: int = 16, channels: int = 3) -> torch.Tensor:
    return torch.randn(4, channels, h, w, generator=torch.Generator().manual_seed(2))


def named_gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    model(x).square().mean().backward()
    return {"image": x.grad, **{name: p.grad for name, p in model.named_parameters()}}


def assert_same(ours: nn.Module, theirs: nn.Module, x: torch.Tensor) -> None:
    """Strict loading both ways, logits to 1e-5 of their size, gradients to 1e-4 of theirs."""
    scrambled(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    with torch.no_grad():
        a, b = ours(x), theirs(x)
    assert b.std() > 0.01  # the comparison would see a difference
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().clamp(min=1).item())
    mine, reference = named_gradients(ours, x), named_gradients(theirs, x)
    assert mine.keys() == reference.keys()
    largest = max(gradient.abs().max().item() for gradient in reference.values())
    for name, gradient in reference.items():
        # A key's bias has a gradient of zero but for rounding; hence the floor.
        scale = max(gradient.abs().max().item(), 0.01 * largest)
        assert (mine[name] - gradient).abs().max().item() <= 1e-4 * scale, name


OPTIONS = {
    "as it comes": ({}, {}),
    "mean pooling, norm after it": ({"pooling": "mean"}, {"global_pool": "avg"}),
    "mean pooling, norm before it": (
        {"pooling": "mean", "fc_norm": False},
        {"global_pool": "avg", "fc_norm": False},
    ),
    "class token, norm after pooling": ({"fc_norm": True}, {"fc_norm": True}),
    "no class token": (
        {"pooling": "mean", "class_token": False},
        {"global_pool": "avg", "class_token": False},
    ),
    "registers": ({"register_tokens": 3}, {"reg_tokens": 3}),
    "registers, mean pooling": (
        {"register_tokens": 2, "pooling": "mean"},
        {"reg_tokens": 2, "global_pool": "avg"},
    ),
    "registers without class token": (
        {"register_tokens": 2, "pooling": "mean", "class_token": False},
        {"reg_tokens": 2, "global_pool": "avg", "class_token": False},
    ),
    "no_embed_class": ({"no_embed_class": True}, {"no_embed_class": True}),
    "no_embed_class, registers": (
        {"no_embed_class": True, "register_tokens": 3},
        {"no_embed_class": True, "reg_tokens": 3},
    ),
    "no position embedding": ({"position_embedding": "none"}, {"pos_embed": "none"}),
    "qk_norm": ({"qk_norm": True}, {"qk_norm": True}),
    "layer_scale": ({"layer_scale": 0.1}, {"init_values": 0.1}),
    "pre_norm": ({"pre_norm": True}, {"pre_norm": True}),
    "no qkv bias": ({"qkv_bias": False}, {"qkv_bias": False}),
    "mlp_ratio": ({"mlp_ratio": 2.5}, {"mlp_ratio": 2.5}),
    "mlp_hidden": ({"mlp_hidden": 96}, {"mlp_ratio": 2.0}),
    "norm_eps": ({"norm_eps": 1e-2}, {"norm_layer": partial(nn.LayerNorm, eps=1e-2)}),
    "no head": ({"num_classes": 0}, {"num_classes": 0}),
    "one block": ({"depth": 1}, {"depth": 1}),
    "one head": ({"num_heads": 1}, {"num_heads": 1}),
    "relu": ({"activation": "relu"}, {"act_layer": nn.ReLU}),
    "silu": ({"activation": "silu"}, {"act_layer": nn.SiLU}),
    "elu": (
        {"activation": "elu", "activation_kwargs": {"alpha": 0.5}},
        {"act_layer": partial(nn.ELU, alpha=0.5)},
    ),
    "gelu_tanh": ({"activation": "gelu_tanh"}, {"act_layer": "gelu_tanh"}),
    "gelu_sigmoid": ({"activation": "gelu_sigmoid"}, {"act_layer": "quick_gelu"}),
    "import path": ({"activation": "torch.nn.CELU"}, {"act_layer": nn.CELU}),
    "swiglu": (
        {"activation": "swiglu"},
        {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 16 / 3},
    ),
    "geglu": (
        {"activation": "geglu", "mlp_hidden": 60},
        {"mlp_layer": partial(GluMlp, gate_last=False), "act_layer": nn.GELU, "mlp_ratio": 2.5},
    ),
    "several": (
        {"pooling": "mean", "register_tokens": 1, "qk_norm": True, "layer_scale": 0.2, "activation": "relu"},
        {"global_pool": "avg", "reg_tokens": 1, "qk_norm": True, "init_values": 0.2, "act_layer": nn.ReLU},
    ),
}


@pytest.mark.parametrize("attention", ["explicit", "sdpa"])
@pytest.mark.parametrize("option", OPTIONS)
def test_options(option, attention):
    ours, theirs = OPTIONS[option]
    ours = VisionTransformer(**{**OURS, **ours}, attention=attention)
    assert_same(ours, TimmViT(**{**TIMM, **theirs}), images())


@pytest.mark.parametrize(
    ("image_size", "patch_size", "channels"), [((8, 24), 4, 3), (16, (2, 8), 3), ((12, 20), (6, 4), 1)]
)
def test_shapes_that_are_not_square(image_size, patch_size, channels):
    shape = {"patch_size": patch_size, **SMALL}
    ours = VisionTransformer(image_size=image_size, in_channels=channels, **shape)
    theirs = TimmViT(img_size=image_size, in_chans=channels, **shape)
    h, w = (image_size, image_size) if isinstance(image_size, int) else image_size
    assert_same(ours, theirs, images(h, w, channels))


def test_fixed_position_embedding_loads_as_a_learned_one():
    ours = scrambled(VisionTransformer(**OURS, position_embedding="sincos2d"))
    theirs = TimmViT(**TIMM)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(ours(images()), theirs(images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"drop_path": 0.5}, {"drop_path_rate": 0.5}),
        ({"dropout": 0.3}, {"pos_drop_rate": 0.3, "proj_drop_rate": 0.3}),
        ({"attention_dropout": 0.3}, {"attn_drop_rate": 0.3}),
        (
            {"drop_path": 0.4, "dropout": 0.1, "attention_dropout": 0.1, "pooling": "mean"},
            {
                "drop_path_rate": 0.4,
                "pos_drop_rate": 0.1,
                "proj_drop_rate": 0.1,
                "attn_drop_rate": 0.1,
                "global_pool": "avg",
            },
        ),
    ],
)
def test_noise_in_training_is_drawn_alike(ours, theirs):
    set_fused_attn(False)
    try:
        theirs = scrambled(TimmViT(**TIMM, **theirs))
    finally:
        set_fused_attn(True)
    ours = VisionTransformer(**OURS, **ours, attention="explicit")
    ours.load_state_dict(theirs.state_dict(), strict=True)
    outputs = []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(3)
        # Not model(images): our last block would draw for the class token alone.
        outputs.append(model.forward_head(model.forward_features(images())))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours.eval()(images()), outputs[0], atol=1e-2)  # the noise was on
    torch.testing.assert_close(ours(images()), theirs.eval()(images()), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "timm_name"),
    [
        ("vit_tiny", "vit_tiny_patch16_224"),
        ("vit_small", "vit_small_patch16_224"),
        ("vit_base", "vit_base_patch16_224"),
        ("vit_large", "vit_large_patch16_224"),
        ("vit_huge", "vit_huge_patch14_224"),
    ],
)
def test_sizes_are_timms(name, timm_name):
    with torch.device("meta"):
        ours, theirs = build_vit(name), timm.create_model(timm_name, num_classes=1000)
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    assert len(ours.blocks) == VIT_SIZES[name].depth
    assert [b.attn.num_heads for b in ours.blocks] == [b.attn.num_heads for b in theirs.blocks]


@pytest.mark.parametrize(
    ("name", "parameters", "paper"),
    [("vit_base", 86_567_656, 86e6), ("vit_large", 304_326_632, 307e6), ("vit_huge", 632_045_800, 632e6)],
)
def test_parameter_counts_of_the_papers_table_1(name, parameters, paper):
    with torch.device("meta"):
        count = sum(p.numel() for p in build_vit(name).parameters())
    assert count == parameters
    assert abs(count - paper) < 0.01 * paper


@pytest.mark.parametrize(
    ("stem", "patch_size", "timm_name"),
    [
        ("resnet_stem", 32, "vit_tiny_r_s16_p8_224"),
        ("resnet26", 32, "vit_small_r26_s32_224"),
        ("resnet50", 16, "vit_base_r50_s16_224"),
    ],
)
def test_hybrid_stems(stem, patch_size, timm_name):
    size = {"num_classes": 5, "embed_dim": 24, "depth": 1, "num_heads": 3}
    theirs = timm.create_model(timm_name, img_size=(32, 64), **size)
    ours = VisionTransformer(image_size=(32, 64), patch_size=patch_size, stem=stem, **size)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = images(32, 64)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)
    mine, reference = named_gradients(ours, x), named_gradients(theirs, x)
    for name in ("image", "patch_embed.proj.weight", "head.weight"):
        torch.testing.assert_close(mine[name], reference[name], rtol=1e-4, atol=1e-6)
