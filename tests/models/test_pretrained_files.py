"""Bare files: layouts, wrappers, what is inferred from shapes; and files that are refused before anything runs."""

import argparse
import os
import pickle
import re
import zipfile

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn

from tests.models.checkpoints import assert_same_logits, images, scrambled, small_timm
from vit_gelu.models.pretrained import build_pretrained, read_pretrained
from vit_gelu.models.pretrained.files import SUFFIXES

TINY = {"img_size": 32, "num_classes": 7}


def read_back(state, path, **options):
    torch.save(state, path)
    return read_pretrained(str(path), **options)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"qkv_bias": False}),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg", "fc_norm": False}),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}),
        ("vit_tiny_patch16_224", {"qk_norm": True, "num_heads": 4, "in_chans": 1}),
        ("vit_tiny_patch16_224", {"num_classes": 0, "mlp_ratio": 3.0}),
        ("vit_tiny_patch16_224", {"reg_tokens": 3}),
        (
            "vit_tiny_patch16_224",
            {"reg_tokens": 2, "class_token": False, "global_pool": "avg", "fc_norm": True},
        ),
        ("deit3_small_patch16_224", {}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 28}),
        ("vit_tiny_r_s16_p8_224", {"img_size": 64}),
        ("vit_base_patch16_clip_224", {"img_size": 48}),
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_architecture_from_shapes(name, arguments, suffix, tmp_path):
    theirs = small_timm(name, **{**TINY, **arguments})
    path = tmp_path / f"weights{suffix}"
    save_file(theirs.state_dict(), path) if suffix == ".safetensors" else torch.save(
        theirs.state_dict(), path
    )
    pretrained = read_pretrained(str(path))
    assert (pretrained.origin, pretrained.name, len(pretrained.sha256)) == ("timm", "weights", 64)
    assert any("activation gelu (exact): assumed" in note for note in pretrained.notes)
    eps = theirs.blocks[0].norm1.eps
    assert any(f"norm_eps {eps:g}: assumed" in note for note in pretrained.notes)
    if "clip" in name:
        config = timm.get_pretrained_cfg(f"{name}.openai")
        assert (pretrained.mean, pretrained.std) == (config.mean, config.std)
    ours, changes = build_pretrained(pretrained)
    assert not changes
    assert_same_logits(
        ours, theirs, images(pretrained.options["image_size"], pretrained.options["in_channels"])
    )


@pytest.mark.parametrize("name", ["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"])
def test_heads_of_the_papers_sizes(name):
    """Also where they are not 64 wide: ViT-H has 16 of 80."""
    from vit_gelu.models import VIT_SIZES
    from vit_gelu.models.pretrained.infer import infer_options

    with torch.device("meta"):
        model = timm.create_model(f"{name}_patch{VIT_SIZES[name].patch_size}_224")
    options, _ = infer_options(model.state_dict(), "timm", "x")
    assert options["num_heads"] == VIT_SIZES[name].num_heads


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"model": s, "args": argparse.Namespace(lr=0.1), "epoch": 3},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "optimizer": {"state": {}}},
        lambda s: {"model": {"state_dict": {f"_orig_mod.{k}": v for k, v in s.items()}}},
        lambda s: {
            "encoder": {f"module.{k}": v for k, v in s.items()},
            "predictor": {"module.x": torch.ones(1)},
        },
        lambda s: {"state_dict": {k: torch.zeros_like(v) for k, v in s.items()}, "state_dict_ema": s},
    ],
)
def test_wrappers(wrap, tmp_path):
    theirs = small_timm("vit_tiny_patch16_224", **TINY)
    pretrained = read_back(wrap(theirs.state_dict()), tmp_path / "a.pth")
    assert_same_logits(build_pretrained(pretrained)[0], theirs, images((32, 32)))


def test_averaged_weights_are_taken_and_said(tmp_path):
    state = small_timm("vit_tiny_patch16_224", **TINY).state_dict()
    pretrained = read_back({"state_dict": state, "state_dict_ema": state}, tmp_path / "a.pth")
    assert "weights: state_dict_ema of the file, not state_dict" in pretrained.notes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_and_it_is_said(dtype, tmp_path):
    theirs = small_timm("vit_tiny_patch16_224", **TINY).to(dtype)
    pretrained = read_back(theirs.state_dict(), tmp_path / "a.pth")
    assert {v.dtype for v in pretrained.state.values()} == {torch.float32}
    assert any(f"{str(dtype)[6:]} in the file, float32 here" in note for note in pretrained.notes)
    assert_same_logits(build_pretrained(pretrained)[0], theirs.float(), images((32, 32)))


def test_deit3s_own_names(tmp_path):
    theirs = small_timm("deit3_small_patch16_224", **TINY)
    original = {re.sub(r"\.ls([12])\.gamma", r".gamma_\1", k): v for k, v in theirs.state_dict().items()}
    assert any("gamma_1" in key for key in original)
    pretrained = read_back({"model": original}, tmp_path / "deit_3.pth")
    assert pretrained.options["no_embed_class"]
    assert_same_logits(build_pretrained(pretrained)[0], theirs, images((32, 32)))


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("swiglu", [False, True])
def test_dinov2s_own_names(registers, swiglu, tmp_path):
    """Against timm's conversion of them; the class token has a position of its own there, the registers none."""
    name = f"vit_{'giant' if swiglu else 'small'}_patch14_{'reg4_' if registers else ''}dinov2"
    arguments = {"embed_dim": 128, "depth": 2, "num_heads": 2, "img_size": 42, "num_classes": 0}
    theirs = scrambled(timm.create_model(name, **arguments))
    original = {key: value.clone() for key, value in theirs.state_dict().items()}
    if registers:
        original["register_tokens"] = original.pop("reg_token")
        original["pos_embed"] = torch.randn(1, 10, 128)
    if swiglu:
        original = {
            k.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3."): v
            for k, v in original.items()
        }
    original["mask_token"] = torch.zeros(1, 128)
    theirs.load_state_dict(checkpoint_filter_fn(dict(original), theirs), strict=True)
    pretrained = read_back(original, tmp_path / "dinov2.pth")
    assert any("left out: mask_token: the token of masked pre-training" in n for n in pretrained.notes)
    assert_same_logits(build_pretrained(pretrained)[0], theirs, images((42, 42)))


CLIP_NAMES = (
    ("patch_embed.proj", "conv1"),
    ("pos_embed", "positional_embedding"),
    ("blocks.", "transformer.resblocks."),
    ("norm_pre", "ln_pre"),
    ("norm1", "ln_1"),
    ("norm2", "ln_2"),
    ("qkv.", "in_proj_"),
    ("attn.proj", "attn.out_proj"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)


@pytest.mark.parametrize("alone", [False, True])
def test_clips_own_names(alone, tmp_path):
    theirs = small_timm("vit_base_patch16_clip_224", img_size=48, num_classes=24)
    with torch.no_grad():
        theirs.head.bias.zero_()  # CLIP's projection has none
    original = {}
    for key, value in theirs.state_dict().items():
        if key == "cls_token":
            original["class_embedding"] = value[0, 0]
        elif key == "head.weight":
            original["proj"] = value.T.clone()
        elif key != "head.bias":
            key = re.sub(r"^norm\.", "ln_post.", key)
            for ours, clips in CLIP_NAMES:
                key = key.replace(ours, clips)
            original[key] = value[0] if key == "positional_embedding" else value
    if not alone:
        text = {
            "transformer.resblocks.0.ln_1.weight": torch.ones(3),
            "positional_embedding": torch.ones(7, 3),
            "logit_scale": torch.ones(()),
        }
        original = {f"visual.{k}": v for k, v in original.items()} | text
        again = checkpoint_filter_fn(dict(original), theirs)
        theirs.load_state_dict(again, strict=True)
    pretrained = read_back(original, tmp_path / "clip.pt")
    assert pretrained.mean == timm.data.OPENAI_CLIP_MEAN
    assert (pretrained.options["pre_norm"], pretrained.options["norm_eps"]) == (True, 1e-5)
    assert any("the text tower" in note for note in pretrained.notes) is not alone
    assert_same_logits(build_pretrained(pretrained)[0], theirs, images((48, 48)))


def test_open_clip_around_timm(tmp_path):
    theirs = small_timm("vit_tiny_patch16_224", **TINY)
    original = {f"visual.trunk.{k}": v for k, v in theirs.state_dict().items() if not k.startswith("head")}
    original |= {"visual.head.proj.weight": theirs.head.weight.detach(), "text.x": torch.ones(1)}
    original["logit_bias"] = torch.ones(())
    with torch.no_grad():
        theirs.head.bias.zero_()
    pretrained = read_back(original, tmp_path / "open_clip.bin")
    assert_same_logits(build_pretrained(pretrained)[0], theirs, images((32, 32)))


def test_a_grid_that_is_not_square_needs_its_image_size(tmp_path):
    theirs = small_timm("vit_tiny_patch16_224", **{**TINY, "img_size": (32, 80)})
    path = tmp_path / "a.pth"
    with pytest.raises(ValueError, match="has 11 position embeddings, neither with nor without"):
        read_back(theirs.state_dict(), path)
    with pytest.raises(ValueError, match="images of 64x80 make 4 x 5"):
        read_pretrained(str(path), image_size=(64, 80))
    ours, _ = build_pretrained(read_pretrained(str(path), image_size=(32, 80)))
    assert_same_logits(ours, theirs, images((32, 80)))


def test_positions_that_may_mean_two_grids_are_not_guessed(tmp_path):
    """Nine: of 3 x 3 patches, or of 2 x 2 and of one class and four register tokens."""
    theirs = small_timm("vit_tiny_patch16_224", **{**TINY, "reg_tokens": 4})
    with pytest.raises(ValueError, match="has 9 position embeddings, both with and without its 5 class"):
        read_back(theirs.state_dict(), tmp_path / "a.pth")
    ours, _ = build_pretrained(read_pretrained(str(tmp_path / "a.pth"), image_size=(32, 32)))
    assert_same_logits(ours, theirs, images((32, 32)))


# Refusals


def test_a_pickle_that_wants_to_run_code_runs_nothing(tmp_path):
    trace = tmp_path / "it_ran"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {trace}",)

    state = {"patch_embed.proj.weight": torch.zeros(1), "x": Payload()}
    torch.save(state, tmp_path / "zip.pth")
    torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    for protocol in (0, 2, 4):
        (tmp_path / "bare.pth").write_bytes(pickle.dumps({"state_dict": Payload()}, protocol=protocol))
        with pytest.raises(ValueError, match=r"refused, because unpickling it would call \w+\.system"):
            read_pretrained(str(tmp_path / "bare.pth"))
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Payload(), protocol=2))
    for name in ("zip.pth", "legacy.pth", "bare.pt"):
        with pytest.raises(ValueError, match=r"unpickling it would call \w+\.system; only tensors"):
            read_pretrained(str(tmp_path / name))
    assert not trace.exists()
    pickle.loads((tmp_path / "bare.pt").read_bytes())  # the payload is one
    assert trace.exists()


def test_other_pickled_things_are_refused_by_name(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"would call torch.nn.modules.linear.Linear"):
        read_pretrained(str(tmp_path / "module.pth"))


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
    with pytest.raises(ValueError, match="is a TorchScript program"):
        read_pretrained(str(tmp_path / "a.pt"))


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s != ".tar"])
@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02", b"PK\x03\x04" + b"\0" * 40, b"not weights at all\n" * 50]
)
def test_garbage(content, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: (cannot be read|holds Python objects)"):
        read_pretrained(str(path))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", "legacy.pth"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated(suffix, kept, tmp_path):
    state = small_timm("vit_tiny_patch16_224", **TINY).state_dict()
    path = tmp_path / f"a{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=suffix == ".pth")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match="cannot be read as") as caught:
        read_pretrained(str(path))
    assert len(str(caught.value).splitlines()) == 1


def refused(change, match, id):
    return pytest.param(change, match, id=id)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        refused(lambda s: s.pop("norm.bias"), r"1 missing: norm.bias$", "missing"),
        refused(
            lambda s: s.update({f"extra.{i}": torch.ones(1) for i in range(9)}),
            r"9 surplus: extra.0, extra.1, extra.2, extra.3, extra.4, … \(9 in all\)$",
            "surplus",
        ),
        refused(
            lambda s: s.update({"blocks.1.norm1.weight": torch.ones(5)}),
            r"1 of another shape: blocks.1.norm1.weight \(5,\), not \(128,\)",
            "shape",
        ),
        refused(
            lambda s: s.update({"dist_token": torch.ones(1, 1, 128)}),
            "distillation token and two heads",
            "deit",
        ),
        refused(
            lambda s: s.pop("patch_embed.proj.weight"),
            "not a Vision Transformer of a known layout",
            "no patch",
        ),
        refused(
            lambda s: s.update({"norm_pre.weight": torch.ones(128)}),
            "missing: norm_pre.bias\n.*surplus",
            "pre_norm",
        ),
        refused(
            lambda s: s.update({"blocks.0.attn.rope.freqs": torch.ones(4)}),
            "surplus: blocks.0.attn.rope",
            "rope",
        ),
        refused(
            lambda s: s.update({"blocks.0.mlp.fc1.weight": torch.ones(1024, 128)}),
            "its MLPs are gated",
            "gated",
        ),
        refused(
            lambda s: s.update({"pos_embed": torch.ones(1, 8, 128)}), "has 8 position embeddings", "positions"
        ),
    ],
)
def test_keys_that_do_not_add_up(change, match, tmp_path):
    state = dict(small_timm("vit_tiny_patch16_224", **TINY).state_dict())
    change(state)
    with pytest.raises(ValueError, match=match) as caught:
        read_back(state, tmp_path / "a.pth")
    assert len(str(caught.value).splitlines()) <= 4


@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"]
)
def test_other_architectures(name, tmp_path):
    with pytest.raises(ValueError, match=r"--model.pretrained"):
        read_back(timm.create_model(name).state_dict(), tmp_path / "a.pth")


def test_transformers_layout_is_refused_as_such(tmp_path):
    state = {"vit.embeddings.patch_embeddings.projection.weight": torch.ones(1)}
    with pytest.raises(ValueError, match="in the layout of the transformers library"):
        read_back(state, tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"epoch": 3, "optimizer": {}}, "holds no state dict .found: epoch, optimizer."),
        ([1, 2], "holds no state dict .found: list."),
        ({}, "holds no state dict"),
    ],
)
def test_files_without_a_state_dict(content, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        read_back(content, tmp_path / "a.pth")


def test_a_width_that_does_not_tell_its_heads(tmp_path):
    theirs = timm.create_model("vit_tiny_patch16_224", embed_dim=48, depth=1, num_heads=3, **TINY)
    with pytest.raises(ValueError, match="its number of heads cannot be told"):
        read_back(theirs.state_dict(), tmp_path / "a.pth")


def test_zip_that_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        read_pretrained(str(tmp_path / "a.pth"))
