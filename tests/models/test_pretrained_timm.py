"""timm's models by name: translated, loaded strictly, equal logits; or refused by the name of the argument."""

from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import GluMlp, SwiGLU
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from tests.models.checkpoints import MEAN, STD, assert_same_logits, images, scrambled, timm_folder
from vit_gelu.models.pretrained import build_pretrained, read_pretrained
from vit_gelu.models.pretrained.timm_architecture import activation_by_values, options_from_timm

# Two narrow blocks and five patches a side stand for the whole; everything else is the name's own.
NARROW = {"embed_dim": 48, "depth": 2, "num_heads": 3}
NAMES = {
    "vit_tiny_patch16_224.augreg_in21k": {},
    "vit_tiny_patch16_384.augreg_in21k_ft_in1k": {},
    "vit_small_patch32_224.augreg_in21k": {},
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": {},
    "vit_base_patch16_224.orig_in21k": {},
    "vit_base_patch16_224.mae": {},
    "vit_base_patch16_224.sam_in1k": {},
    "vit_base_patch16_224_miil.in21k": {"qkv_bias": False},
    "vit_small_patch16_224.dino": {},
    "vit_base_patch8_224.dino": {},
    "vit_huge_patch14_224.mae": {},
    "vit_base_patch16_clip_224.openai": {"pre_norm": True, "norm_eps": 1e-5, "activation": "gelu"},
    "vit_base_patch16_clip_quickgelu_224.openai": {"activation": "gelu_sigmoid"},
    "vit_large_patch14_clip_quickgelu_336.openai": {"activation": "gelu_sigmoid", "pre_norm": True},
    "vit_huge_patch14_clip_224.laion2b": {"activation": "gelu"},
    "vit_base_patch32_clip_448.laion2b_ft_in12k_in1k": {},
    "vit_small_patch14_dinov2.lvd142m": {"layer_scale": 1e-5},
    "vit_small_patch14_reg4_dinov2.lvd142m": {"register_tokens": 4, "no_embed_class": True},
    "vit_giant_patch14_reg4_dinov2.lvd142m": {"activation": "swiglu", "mlp_hidden": 128},
    "deit_tiny_patch16_224.fb_in1k": {},
    "deit_base_patch16_384.fb_in1k": {},
    "deit3_small_patch16_224.fb_in1k": {"layer_scale": 1e-5, "no_embed_class": True},
    "deit3_huge_patch14_224.fb_in22k_ft_in1k": {},
    "flexivit_small.1200ep_in1k": {"no_embed_class": True},
    "vit_base_patch16_siglip_gap_224.webli": {"pooling": "mean", "class_token": False, "fc_norm": False},
    "vit_base_patch32_siglip_gap_256.v2_webli": {"activation": "gelu_tanh"},
    "vit_medium_patch16_gap_256.sw_in12k_ft_in1k": {"pooling": "mean", "class_token": False},
    "vit_medium_patch16_reg4_gap_256.sbb_in12k_ft_in1k": {"register_tokens": 4},
    "vit_betwixt_patch16_reg1_gap_256.sbb_in1k": {"register_tokens": 1, "pooling": "mean"},
    "eva_large_patch14_196.in22k_ft_in1k": {"pooling": "mean", "fc_norm": True},
    "vit_tiny_r_s16_p8_224.augreg_in21k": {"stem": "resnet_stem", "patch_size": [32, 32]},
    "test_vit.r160_in1k": {},
}


def resized_by_timm(name: str, state: dict, model: nn.Module) -> nn.Module:
    """timm's own way to load weights into a model of another size."""
    load = checkpoint_filter_fn
    if name.startswith("flexivit"):
        load = partial(load, interpolation="bilinear", antialias=False)
    model.load_state_dict(load(dict(state), model), strict=True)
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_names(name, tmp_path):
    architecture = name.partition(".")[0]
    patch = 32 if "_r_s16_p8" in name else timm.create_model(name, **NARROW).patch_embed.patch_size[0]
    arguments = {**NARROW, "img_size": 5 * patch}
    theirs = scrambled(timm.create_model(name, num_classes=7, **arguments))
    folder = timm_folder(theirs, architecture, arguments, tmp_path)
    pretrained = read_pretrained(str(folder))
    assert (pretrained.origin, pretrained.mean, pretrained.std) == ("timm", MEAN, STD)
    assert {k: pretrained.options[k] for k in NAMES[name]} == NAMES[name]

    ours, changes = build_pretrained(pretrained)
    assert not changes
    assert_same_logits(ours, theirs, images((5 * patch, 5 * patch)))

    size = (6 * patch, 4 * patch)
    ours, (change,) = build_pretrained(pretrained, image_size=size)
    assert change.part == "position_embedding"
    assert change.text.startswith("position_embedding: 5x5 patches -> 6x4 patches, resized")
    other = timm.create_model(name, num_classes=7, **{**arguments, "img_size": size})
    assert_same_logits(ours, resized_by_timm(name, theirs.state_dict(), other), images(size))


@pytest.mark.parametrize("name", ["vit_small_patch16_224.dino", "flexivit_small.1200ep_in1k"])
@pytest.mark.parametrize("patch", [(8, 8), (24, 12)])
def test_another_patch_size(name, patch, tmp_path):
    arguments = {**NARROW, "img_size": 48}
    theirs = scrambled(timm.create_model(name, num_classes=7, **arguments))
    folder = timm_folder(theirs, name.partition(".")[0], arguments, tmp_path / name)
    ours, changes = build_pretrained(read_pretrained(str(folder)), patch_size=patch)
    assert [change.part for change in changes] == ["patch_embed", "position_embedding"]
    other = resized_by_timm(
        name,
        theirs.state_dict(),
        timm.create_model(name, num_classes=7, **{**arguments, "patch_size": patch}),
    )
    with torch.no_grad():
        a, b = ours.eval()(images((48, 48))), other(images((48, 48)))
    # timm inverts in float32, and resizing kernels from 16 to 8 pixels is ill conditioned.
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def test_dynamic_image_size_is_the_same_function_at_a_fixed_one(tmp_path):
    arguments = {**NARROW, "img_size": 64, "dynamic_img_size": True}
    theirs = scrambled(timm.create_model("vit_tiny_patch16_224", num_classes=7, **arguments))
    pretrained = read_pretrained(str(timm_folder(theirs, "vit_tiny_patch16_224", arguments, tmp_path)))
    for size in ((64, 64), (96, 80)):
        assert_same_logits(build_pretrained(pretrained, image_size=size)[0], theirs, images(size))


@pytest.mark.parametrize(
    ("act_layer", "activation"),
    [("relu", "relu"), ("silu", "silu"), ("gelu_tanh", "gelu_tanh"), ("elu", "elu")],
)
def test_native_activation_of_a_folder(act_layer, activation, tmp_path):
    arguments = {**NARROW, "img_size": 32, "act_layer": act_layer}
    theirs = scrambled(timm.create_model("vit_tiny_patch16_224", num_classes=7, **arguments))
    pretrained = read_pretrained(str(timm_folder(theirs, "vit_tiny_patch16_224", arguments, tmp_path)))
    ours, _ = build_pretrained(pretrained)
    assert pretrained.options["activation"] == ours.config["activation"] == activation
    assert_same_logits(ours, theirs, images((32, 32)))


def test_a_folder_that_timm_itself_wrote(tmp_path):
    from timm.models import save_for_hf

    theirs = scrambled(timm.create_model("vit_tiny_patch16_224.augreg_in21k", num_classes=7, **NARROW))
    save_for_hf(theirs, str(tmp_path), model_args=NARROW)
    pretrained = read_pretrained(str(tmp_path))
    assert (pretrained.mean, pretrained.std) == ((0.5,) * 3, (0.5,) * 3)
    assert_same_logits(build_pretrained(pretrained)[0], theirs, images((224, 224), n=1))


@pytest.mark.parametrize(
    ("name", "key", "reason"),
    [
        ("vit_tiny_patch16_224", "pre_logits.fc.weight", "without the representation layer"),
        ("vit_base_patch16_siglip_gap_224", "attn_pool.latent", "without the attention pooling"),
        ("vit_small_patch14_dinov2", "mask_token", "masked pre-training"),
    ],
)
def test_what_timm_leaves_out_of_a_file_is_left_out_and_said(name, key, reason, tmp_path):
    arguments = {**NARROW, "img_size": 56 if "14" in name else 32}
    theirs = scrambled(timm.create_model(name, num_classes=7, **arguments))
    folder = timm_folder(theirs, name, arguments, tmp_path)
    save_file({**theirs.state_dict(), key: torch.ones(3)}, folder / "model.safetensors")
    pretrained = read_pretrained(str(folder))
    (note,) = (n for n in pretrained.notes if n.startswith(f"left out: {key}: "))
    assert reason in note
    assert_same_logits(build_pretrained(pretrained)[0], theirs, images(pretrained.options["image_size"]))


def test_a_file_of_another_size_than_its_configuration(tmp_path):
    """timm resizes it to the configured size when it loads; here the checkpoint is what the file is."""
    arguments = {**NARROW, "img_size": 64}
    theirs = scrambled(timm.create_model("vit_tiny_patch16_224", num_classes=7, **arguments))
    folder = timm_folder(theirs, "vit_tiny_patch16_224", {**arguments, "img_size": 96}, tmp_path)
    pretrained = read_pretrained(str(folder))
    assert pretrained.options["image_size"] == [64, 64]
    assert "image_size [64, 64]: of the file, other than in its configuration" in pretrained.notes
    assert_same_logits(build_pretrained(pretrained)[0], theirs, images((64, 64)))
    other = timm.create_model("vit_tiny_patch16_224", num_classes=7, **{**arguments, "img_size": 96})
    assert_same_logits(
        build_pretrained(pretrained, image_size=96)[0],
        resized_by_timm("vit_tiny", theirs.state_dict(), other),
        images((96, 96)),
    )


def test_pixels_beyond_the_last_whole_patch(tmp_path):
    """As in vit_so400m_patch14_siglip_gap_384, where 27 patches of 14 make 378."""
    arguments = {**NARROW, "img_size": 40}
    theirs = scrambled(timm.create_model("vit_tiny_patch16_224", num_classes=7, **arguments))
    pretrained = read_pretrained(str(timm_folder(theirs, "vit_tiny_patch16_224", arguments, tmp_path)))
    assert pretrained.options["image_size"] == [32, 32]
    assert any("the whole patches of [40, 40]" in note for note in pretrained.notes)
    x = images((40, 40))
    ours, _ = build_pretrained(pretrained)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x[..., :32, :32]), theirs(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("deit_tiny_distilled_patch16_224.fb_in1k", "distilled"),
        ("vit_base_patch16_siglip_224.webli", "global_pool='map' .attention pooling"),
        ("vit_base_patch16_18x2_224", "block_fn .ParallelThingsBlock"),
        ("vit_base_patch16_xp_224", "block_fn .ParallelScalingBlock"),
        ("vit_base_patch16_rpn_224.sw_in1k", "block_fn .ResPostBlock"),
        ("aimv2_large_patch14_224.apple_pt", "(mlp_layer|norm_layer|proj_bias|embed_norm_layer)"),
        ("vit_dlittle_patch16_reg1_gap_256.sbb_nadamuon_in1k", "attn_layer .DiffAttention"),
        ("vit_large_r50_s32_224.augreg_in21k", r"embed_layer .ResNetV2 with stages of \[3, 4, 6, 3\]"),
        ("vit_small_resnet26d_224", "embed_layer"),
        ("vit_intern300m_patch14_448.ogvl_dist", "final_norm=False"),
        ("vit_base_mci_224.apple_mclip", "embed_layer .ConvStem without a projection"),
        ("resnet18.a1_in1k", "architecture .ResNet, no plain Vision Transformer"),
        ("eva02_tiny_patch14_224.mim_in22k", "architecture .Eva"),
    ],
)
def test_what_our_vit_has_not_is_refused_by_timms_argument(name, argument):
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        pytest.skip(f"this timm has no {architecture}")
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(ValueError, match=f"--model.pretrained {name}: timm's {argument}") as caught:
        options_from_timm(model, name, architecture)
    assert f"--model.name timm/{architecture}" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"scale_attn_norm": True}, "scale_attn_norm"),
        ({"scale_mlp_norm": True}, "scale_mlp_norm"),
        ({"proj_bias": False}, "proj_bias"),
        ({"final_norm": False}, "final_norm"),
        ({"norm_layer": "rmsnorm"}, "norm_layer .RmsNorm"),
        ({"global_pool": "max"}, "global_pool='max'"),
        ({"global_pool": "avg", "pool_include_prefix": True}, "pool_include_prefix"),
        ({"dynamic_img_pad": True}, "dynamic_img_pad"),
        ({"mlp_layer": GluMlp, "act_layer": "silu"}, "mlp_layer .GluMlp with gate_last=True"),
        ({"mlp_layer": SwiGLU}, "mlp_layer .SwiGLU"),
        ({"act_layer": "sigmoid"}, "act_layer .Sigmoid"),
        ({"act_layer": "prelu"}, "act_layer .PReLU"),
    ],
)
def test_single_arguments_are_refused(arguments, argument):
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", depth=1, **arguments)
    with pytest.raises(ValueError, match=f"timm's {argument}"):
        options_from_timm(model, "x", "vit_tiny_patch16_224")


@pytest.mark.parametrize("name", ["vit_small_r26_s32_224", "vit_base_r50_s16_384"])
def test_hybrids_have_timms_shapes(name):
    with torch.device("meta"):
        theirs = timm.create_model(name)
    from vit_gelu.models.pretrained.keys import shapes_of

    shapes = shapes_of(options_from_timm(theirs, name, name))
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}


def test_activations_are_told_by_their_values():
    assert activation_by_values(nn.GELU()) == "gelu"
    assert activation_by_values(timm.layers.GELUTanh()) == "gelu_tanh"
    assert activation_by_values(timm.layers.get_act_layer("quick_gelu")()) == "gelu_sigmoid"
    assert activation_by_values(nn.ReLU(inplace=True)) == "relu"
    assert activation_by_values(nn.ELU(0.5)) is None
    assert activation_by_values(nn.PReLU()) is None
