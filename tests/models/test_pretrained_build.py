"""Adapting a checkpoint: head, input, sizes, options; what changed is said, and nothing is half-loaded."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import adapt_input_conv

from tests.models.checkpoints import images
from vit_gelu.models import VisionTransformer
from vit_gelu.models.position import sincos2d
from vit_gelu.models.pretrained import Change, Pretrained, build_pretrained
from vit_gelu.models.pretrained.channels import adapt_channels
from vit_gelu.models.pretrained.resize import RESIZINGS, resize_patch_kernel, resize_position_embedding

OWN = {
    "image_size": [16, 16],
    "patch_size": [4, 4],
    "in_channels": 3,
    "num_classes": 5,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
}


def checkpoint(**options) -> Pretrained:
    options = {**OWN, **options}
    generator = torch.Generator().manual_seed(0)
    state = {
        name: value
        if name == "pos_embed" and options.get("position_embedding") == "sincos2d"
        else value + 0.2 * torch.randn(value.shape, generator=generator)
        for name, value in VisionTransformer(**options, seed=0).state_dict().items()
    }
    return Pretrained("S", "s", "timm", options, state, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "0" * 64)


def test_as_it_is():
    pretrained = checkpoint()
    before = copy.deepcopy(pretrained.state)
    model, changes = build_pretrained(pretrained)
    assert not changes
    assert all(torch.equal(v, pretrained.state[k]) for k, v in model.state_dict().items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(v, before[k]) for k, v in pretrained.state.items())  # nothing is shared
    again = VisionTransformer(**model.config)
    assert again.state_dict().keys() == model.state_dict().keys()


def test_head_is_replaced_by_zeros_and_it_is_said():
    model, (change,) = build_pretrained(checkpoint(), num_classes=7)
    assert change == Change("head", "5 classes", "7 classes", "new, zero")
    assert change.record() == {
        "part": "head",
        "before": "5 classes",
        "after": "7 classes",
        "how": "new, zero",
    }
    assert model.head.weight.shape == (7, 24)
    assert not model.head.weight.any()
    assert not model.head.bias.any()
    assert model.config["zero_init_head"] is True


def test_head_may_be_drawn_and_is_the_seeds():
    built = [
        build_pretrained(checkpoint(), num_classes=7, zero_init_head=False, seed=s)[0] for s in (1, 1, 2)
    ]
    assert torch.equal(built[0].head.weight, built[1].head.weight)
    assert not torch.equal(built[0].head.weight, built[2].head.weight)
    assert torch.equal(
        built[0].head.weight, VisionTransformer(**{**OWN, "num_classes": 7}, seed=1).head.weight
    )


def test_equal_number_of_classes_keeps_the_head():
    model, (change,) = build_pretrained(checkpoint(), num_classes=5)
    assert change.text == "head: 5 classes -> 5 classes, kept; whether they are the same ones is not known"
    assert model.head.weight.any()


def test_names_of_classes_decide_where_both_are_known():
    named = dataclasses.replace(checkpoint(), class_names=("a", "b", "c", "d", "e"))
    model, (change,) = build_pretrained(named, num_classes=5, class_names=list("abcde"))
    assert change.text == "head: 5 classes -> 5 classes, kept"
    assert torch.equal(model.head.weight, named.state["head.weight"])
    model, (change,) = build_pretrained(named, num_classes=5, class_names=list("abced"))
    assert change.text == (
        "head: 5 classes -> 5 classes, other classes: number 3 was 'd' and is 'e'; new, zero"
    )
    assert not model.head.weight.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value):
    good = checkpoint()
    bad = {**good.state, "blocks.1.mlp.fc1.bias": torch.full((96,), value)}
    with pytest.raises(
        ValueError, match=r"--model.pretrained S: blocks.1.mlp.fc1.bias has values that are NaN"
    ):
        dataclasses.replace(good, state=bad)


def test_all_contradictions_are_listed():
    with pytest.raises(ValueError, match=r"--model.depth 3: contradicts") as error:
        build_pretrained(checkpoint(), depth=3, pooling="mean", embed_dim=24)
    assert str(error.value).splitlines()[1] == "So do: --model.pooling mean"


@pytest.mark.parametrize(
    ("own", "asked", "text"), [(0, 7, "none -> 7 classes, new, zero"), (5, 0, "5 classes -> none, left out")]
)
def test_no_head(own, asked, text):
    model, (change,) = build_pretrained(checkpoint(num_classes=own), num_classes=asked)
    assert change.text == f"head: {text}"
    assert model(images((16, 16))).shape == (2, asked or 24)


def test_grey_images_give_what_they_give_as_equal_channels():
    pretrained = checkpoint()
    grey = images((16, 16), channels=1)
    model, (change,) = build_pretrained(pretrained, in_channels=1)
    assert change.text == "input: 3 channels -> 1 channel, summed"
    expected = build_pretrained(pretrained)[0].eval()(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(model.eval()(grey), expected, rtol=1e-5, atol=1e-5)
    mean, std = pretrained.normalization(1)
    assert (mean, std) == (pytest.approx((0.2,)), pytest.approx((0.5,)))


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 7])
def test_channels_as_timm_adapts_them(channels):
    kernel = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adapt_channels(kernel, channels)[0], adapt_input_conv(channels, kernel))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_kernel_for_other_channels_is_refused(channels):
    with pytest.raises(
        ValueError, match=f"have 5 channels, the data's {channels}; only checkpoints for grey"
    ):
        adapt_channels(torch.randn(4, 5, 2, 2), channels)


@pytest.mark.parametrize("channels", [2, 3, 5])
def test_a_grey_kernel_gives_the_same_for_equal_channels(channels):
    kernel = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adapt_channels(kernel, channels)[0].sum(1, keepdim=True), kernel)


def test_mean_and_std_are_repeated_like_the_kernels():
    assert checkpoint().normalization(3) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert checkpoint().normalization(4)[0] == (0.1, 0.2, 0.3, 0.1)


def test_computed_position_embeddings_are_computed_again():
    model, (change,) = build_pretrained(checkpoint(position_embedding="sincos2d"), image_size=(16, 24))
    assert change.text == "position_embedding: 4x4 patches -> 4x6 patches, computed again (sincos2d)"
    torch.testing.assert_close(model.pos_embed[0, 1:], sincos2d((4, 6), 24))


@pytest.mark.parametrize(
    "options", [{}, {"register_tokens": 3}, {"no_embed_class": True}, {"position_embedding": "none"}]
)
def test_every_change_at_once(options):
    pretrained = checkpoint(**options)
    model, changes = build_pretrained(
        pretrained,
        image_size=(24, 12),
        patch_size=(3, 4),
        in_channels=2,
        num_classes=9,
        drop_path=0.1,
        seed=4,
    )
    parts = ["head", "patch_embed", "input", "position_embedding"]
    assert [c.part for c in changes] == parts[: 3 if "position_embedding" in options else 4]
    assert model(images((24, 12), channels=2)).shape == (2, 9)
    assert (model.config["drop_path"], model.config["seed"]) == (0.1, 4)
    prefix = 0 if "no_embed_class" in options else 1 + options.get("register_tokens", 0)
    if model.pos_embed is not None:
        assert torch.equal(model.pos_embed[:, :prefix], pretrained.state["pos_embed"][:, :prefix])
    untouched = [k for k in pretrained.state if k.startswith(("blocks", "norm", "cls", "reg"))]
    assert untouched
    assert all(torch.equal(model.state_dict()[k], pretrained.state[k]) for k in untouched)


# Resizing


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("grids", [((4, 4), (7, 7)), ((4, 4), (2, 2)), ((3, 5), (5, 3)), ((3, 5), (6, 4))])
def test_position_embeddings_as_timms(grids, prefix):
    old, new = grids
    table = torch.randn(1, prefix + old[0] * old[1], 8, generator=torch.Generator().manual_seed(0))
    expected = resample_abs_pos_embed(table, new_size=list(new), old_size=list(old), num_prefix_tokens=prefix)
    torch.testing.assert_close(resize_position_embedding(table, old, new, RESIZINGS["timm"]), expected)


@pytest.mark.parametrize("name", ["timm", "google", "flexivit"])
@pytest.mark.parametrize(
    "sizes", [((16, 16), (20, 20)), ((8, 8), (16, 12)), ((8, 6), (5, 7)), ((16, 16), (12, 12))]
)
def test_patch_kernels_as_timms(sizes, name):
    old, new = sizes
    kernel = torch.randn(5, 3, *old, generator=torch.Generator().manual_seed(0))
    resizing = RESIZINGS[name]
    expected = resample_patch_embed(
        kernel, list(new), interpolation=resizing.mode, antialias=resizing.antialias
    )
    ours = resize_patch_kernel(kernel, new, resizing)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("name", RESIZINGS)
def test_a_grown_kernel_gives_equal_products_with_grown_patches(name):
    """FlexiViT's defining property: <B x, w'> = <x, w> for every patch x, where B resizes it."""
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(5, 3, 6, 4, generator=generator)
    patches = torch.randn(9, 3, 6, 4, generator=generator)
    resizing = RESIZINGS[name]
    grown = F.interpolate(
        patches, size=(9, 10), mode=resizing.mode, antialias=resizing.antialias, align_corners=False
    )
    ours = torch.einsum("nchw,dchw->nd", grown, resize_patch_kernel(kernel, (9, 10), resizing))
    torch.testing.assert_close(ours, torch.einsum("nchw,dchw->nd", patches, kernel), rtol=1e-4, atol=1e-4)


def test_a_shrunk_kernel_is_the_least_squares_one():
    """Where the patch shrinks: the kernel that minimises E(<x, w> - <B x, w'>)² for white x; here by lstsq."""
    resizing = RESIZINGS["timm"]
    kernel = torch.randn(1, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pixels = torch.eye(36, dtype=torch.float64).reshape(36, 1, 6, 6)
    b = F.interpolate(pixels, size=(4, 3), mode="bicubic", antialias=True).reshape(36, 12)  # row i: B·e_i
    expected, *_ = np.linalg.lstsq(b.numpy(), kernel.reshape(36).numpy(), rcond=None)
    ours = resize_patch_kernel(kernel, (4, 3), resizing)
    np.testing.assert_allclose(ours.reshape(12).numpy(), expected, rtol=1e-9, atol=1e-12)


# Refusals


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"embed_dim": 48}, "--model.embed_dim 48: contradicts --model.pretrained S, where it is 24"),
        ({"depth": 3}, "--model.depth 3: contradicts"),
        ({"num_heads": 2}, "--model.num_heads 2: contradicts"),
        ({"pooling": "mean"}, "--model.pooling mean: contradicts .* where it is cls"),
        ({"layer_scale": 1e-5}, "--model.layer_scale 1e-05: contradicts .* where it is null"),
        ({"mlp_ratio": 2.0}, "--model.mlp_ratio 2.0: contradicts"),
        ({"mlp_hidden": 10}, "--model.mlp_hidden 10: contradicts .* where it is 96 hidden units"),
        ({"stem": "resnet50"}, "--model.stem resnet50: contradicts"),
        (
            {"activation": "relu"},
            "--model.activation relu: contradicts .* where it is gelu; .*swapped afterwards",
        ),
        ({"qk_norm": True}, "--model.qk_norm True: contradicts"),
        ({"drop_paht": 0.1}, "--model.drop_paht: no such option. Did you mean --model.drop_path"),
        (
            {"image_size": 18},
            "--model.image_size 18: not divisible by the patch size 4 of .*; nearest: 16, 20, or",
        ),
        ({"image_size": 2}, "nearest: 4"),
        ({"patch_size": 5}, "--model.image_size 16: not divisible by the patch size 5; nearest: 15, 20"),
        ({"image_size": [16, 16, 16]}, "--model.image_size .*must be one whole number, or two"),
        ({"in_channels": 0}, "--model.in_channels 0"),
        ({"num_classes": -1}, "--model.num_classes -1"),
        ({"dropout": 1.5}, "--model.dropout 1.5"),
        ({"attention": "flush"}, "Did you mean 'flash'"),
    ],
)
def test_refused(options, match):
    with pytest.raises(ValueError, match=match) as caught:
        build_pretrained(checkpoint(), **options)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "options",
    [
        {"embed_dim": 24, "depth": 2, "activation": "gelu", "activation_kwargs": {}},
        {"mlp_ratio": 4.0, "fc_norm": False, "pooling": "cls"},
        {"mlp_hidden": 96, "layer_scale": None, "embed_dim": None},
        {
            "dropout": 0.1,
            "attention_dropout": 0.1,
            "patch_dropout": 0.5,
            "attention": "explicit",
            "mlp_memory": "lean",
            "residual_precision": "half",
        },
    ],
)
def test_options_that_agree_or_change_no_function(options):
    model, changes = build_pretrained(checkpoint(), **options)
    assert not changes
    x = images((16, 16))
    torch.testing.assert_close(model.eval()(x), build_pretrained(checkpoint())[0].eval()(x))


def test_a_state_that_does_not_fit_its_options_builds_nothing():
    pretrained = checkpoint()
    del pretrained.state["norm.bias"]
    pretrained.state["surplus"] = torch.ones(1)
    with pytest.raises(ValueError, match=r"1 missing: norm.bias\n1 surplus: surplus"):
        build_pretrained(pretrained)


def test_patches_of_a_feature_map_are_not_resized():
    options = {"stem": "resnet_stem", "image_size": [16, 16], "patch_size": [8, 8]}
    pretrained = checkpoint(**options)
    with pytest.raises(ValueError, match="patches of a ResNet's feature map"):
        build_pretrained(pretrained, patch_size=4)
    model, (change,) = build_pretrained(pretrained, in_channels=1)
    assert change.part == "input"
    grey = images((16, 16), channels=1)
    expected = build_pretrained(pretrained)[0].eval()(grey.expand(-1, 3, -1, -1))
    # Weight standardisation sees the summed kernel, so equal channels give the same only for one that is standard.
    assert model.eval()(grey).shape == expected.shape


def test_convolutions_are_not_resized_and_take_other_channels():
    pretrained = checkpoint(stem="conv")
    with pytest.raises(ValueError, match=r"has convolutions \(conv\), whose kernels are not resized"):
        build_pretrained(pretrained, patch_size=8)
    model, (change,) = build_pretrained(pretrained, in_channels=1)
    assert change.part == "input"
    grey = images((16, 16), channels=1)
    expected = build_pretrained(pretrained)[0].eval()(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(model.eval()(grey), expected, rtol=1e-4, atol=1e-5)
    larger, _ = build_pretrained(pretrained, image_size=32)
    assert larger.num_tokens == 65
