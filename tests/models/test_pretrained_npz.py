"""Google's .npz files: against timm's own loader, and their resizing against scipy's zoom as vit_jax calls it."""

import numpy as np
import pytest
import scipy.ndimage
import timm
import torch
from torch import nn

from tests.models.checkpoints import assert_same_logits, images, scrambled
from vit_gelu.models.pretrained import build_pretrained, read_pretrained

DIM, HEADS, DEPTH, HIDDEN, CLASSES, GRID, PATCH = 48, 3, 2, 192, 7, 3, 4
TIMM = {
    "img_size": GRID * PATCH,
    "patch_size": PATCH,
    "embed_dim": DIM,
    "depth": DEPTH,
    "num_heads": HEADS,
    "num_classes": CLASSES,
}


def arrays(
    style: str = "vit_jax", *, cls: bool = True, positions: int = GRID**2 + 1
) -> dict[str, np.ndarray]:
    """Random arrays under the names and in the layouts that flax gives the model's parameters."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return (0.2 * rng.standard_normal(shape)).astype(np.float32)

    jax = style == "vit_jax"
    mha, norm2, mlp = (1, 2, 3) if jax else (0, 1, 0)
    out = {
        "embedding/kernel": draw(PATCH, PATCH, 3, DIM),
        "embedding/bias": draw(DIM),
        "Transformer/posembed_input/pos_embedding" if jax else "pos_embedding": draw(1, positions, DIM),
        "Transformer/encoder_norm/scale": 1 + draw(DIM),
        "Transformer/encoder_norm/bias": draw(DIM),
        "head/kernel": draw(DIM, CLASSES),
        "head/bias": draw(CLASSES),
    }
    if cls:
        out["cls"] = draw(1, 1, DIM)
    for i in range(DEPTH):
        block = f"Transformer/encoderblock_{i}/"
        for name in ("LayerNorm_0", f"LayerNorm_{norm2}"):
            out |= {f"{block}{name}/scale": 1 + draw(DIM), f"{block}{name}/bias": draw(DIM)}
        attention = f"{block}MultiHeadDotProductAttention_{mha}/"
        for name in ("query", "key", "value"):
            out[f"{attention}{name}/kernel"] = draw(DIM, HEADS, DIM // HEADS)
            out[f"{attention}{name}/bias"] = draw(HEADS, DIM // HEADS)
        out |= {f"{attention}out/kernel": draw(HEADS, DIM // HEADS, DIM), f"{attention}out/bias": draw(DIM)}
        for r, (rows, columns) in enumerate(((DIM, HIDDEN), (HIDDEN, DIM))):
            dense = f"{block}MlpBlock_{mlp}/Dense_{r}/"
            out |= {f"{dense}kernel": draw(rows, columns), f"{dense}bias": draw(columns)}
    return out


def saved(path, content: dict[str, np.ndarray], prefix: str = ""):
    np.savez(path, **{prefix + name: value for name, value in content.items()})
    return path


def loaded_by_timm(path, name: str = "vit_tiny_patch16_224", **arguments) -> nn.Module:
    model = scrambled(timm.create_model(name, **{**TIMM, **arguments}), seed=9)
    model.load_pretrained(str(path))
    return model.eval()


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_vit_jax_against_timms_loader(prefix, tmp_path):
    path = saved(tmp_path / "Ti_4.npz", arrays(), prefix)
    pretrained = read_pretrained(str(path))
    assert (pretrained.origin, pretrained.name, pretrained.mean) == ("google", "Ti_4", (0.5, 0.5, 0.5))
    assert (pretrained.options["num_heads"], pretrained.options["activation"]) == (HEADS, "gelu")
    ours, changes = build_pretrained(pretrained)
    assert not changes
    assert_same_logits(ours, loaded_by_timm(path), images((12, 12)))


@pytest.mark.parametrize(
    ("cls", "positions", "arguments"),
    [
        (True, GRID**2 + 1, {}),
        (True, GRID**2, {"no_embed_class": True}),
        (False, GRID**2, {"class_token": False, "global_pool": "avg", "fc_norm": False}),
    ],
)
def test_big_vision_against_timms_loader(cls, positions, arguments, tmp_path):
    path = saved(tmp_path / "b.npz", arrays("big_vision", cls=cls, positions=positions), "params/")
    ours, _ = build_pretrained(read_pretrained(str(path)))
    assert_same_logits(ours, loaded_by_timm(path, **arguments), images((12, 12)))


def test_blocks_stacked_by_a_scan(tmp_path):
    content = arrays("big_vision")
    stacked = {k: v for k, v in content.items() if "encoderblock_" not in k}
    for name in [k for k in content if "encoderblock_0/" in k]:
        parts = [content[name.replace("encoderblock_0", f"encoderblock_{i}")] for i in range(DEPTH)]
        stacked[name.replace("encoderblock_0", "encoderblock")] = np.stack(parts)
    plain, scanned = (
        build_pretrained(read_pretrained(str(saved(tmp_path / f"{n}.npz", c, "params/"))))[0]
        for n, c in (("plain", content), ("scanned", stacked))
    )
    assert all(torch.equal(v, scanned.state_dict()[k]) for k, v in plain.state_dict().items())


def test_representation_layer(tmp_path):
    """The ViT paper's ImageNet-21k files have a tanh layer before the head; it goes with the head."""
    rng = np.random.default_rng(1)
    content = arrays()
    content |= {
        "pre_logits/kernel": rng.standard_normal((DIM, 20)).astype(np.float32),
        "pre_logits/bias": rng.standard_normal(20).astype(np.float32),
        "head/kernel": rng.standard_normal((20, CLASSES)).astype(np.float32),
    }
    path = saved(tmp_path / "L.npz", content)
    pretrained = read_pretrained(str(path))
    ours, changes = build_pretrained(pretrained)
    features = loaded_by_timm(saved(tmp_path / "features.npz", arrays()), num_classes=0)(
        images((12, 12))
    ).detach()
    hidden = torch.tanh(
        features @ torch.from_numpy(content["pre_logits/kernel"]) + content["pre_logits/bias"]
    )
    expected = hidden @ torch.from_numpy(content["head/kernel"]) + content["head/bias"]
    torch.testing.assert_close(ours.eval()(images((12, 12))), expected, rtol=1e-5, atol=1e-4)
    assert not changes
    ours, changes = build_pretrained(pretrained, num_classes=3)
    assert [c.part for c in changes] == ["head", "pre_logits"]
    assert ours.config["representation_size"] is None
    ours, (change,) = build_pretrained(pretrained, num_classes=3, representation_size=20)
    assert change.part == "head"
    torch.testing.assert_close(ours.pre_logits.fc.bias.detach().numpy(), content["pre_logits/bias"])


@pytest.mark.parametrize(
    ("name", "stage_units", "patch"),
    [("vit_tiny_r_s16_p8_224", (), 8), ("vit_small_r26_s32_224", (2, 2, 2, 2), 1)],
)
def test_hybrids_against_timms_loader(name, stage_units, patch, tmp_path):
    arguments = {"img_size": 64, "patch_size": patch, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS}
    shapes = {k: tuple(v.shape) for k, v in timm.create_model(name, **arguments).state_dict().items()}
    rng = np.random.default_rng(2)

    def kernel(key: str) -> np.ndarray:
        out, inside, h, w = shapes[f"patch_embed.{key}.weight"]
        return rng.standard_normal((h, w, inside, out)).astype(np.float32)

    content = arrays(positions=5)
    root = "backbone.stem." if stage_units else "backbone."
    content |= {"conv_root/kernel": kernel(f"{root}conv"), "embedding/kernel": 0.1 * kernel("proj")}

    def norm(theirs: str, key: str) -> dict[str, np.ndarray]:
        n = shapes[f"patch_embed.{key}.weight"][0]
        return {
            f"{theirs}/{p}": rng.standard_normal((1, 1, 1, n)).astype(np.float32) for p in ("scale", "bias")
        }

    content |= norm("gn_root", f"{root}norm")
    for i, units in enumerate(stage_units):
        for j in range(units):
            theirs, ours = f"block{i + 1}/unit{j + 1}", f"backbone.stages.{i}.blocks.{j}"
            for r in (1, 2, 3):
                content[f"{theirs}/conv{r}/kernel"] = kernel(f"{ours}.conv{r}")
                content |= norm(f"{theirs}/gn{r}", f"{ours}.norm{r}")
            if f"patch_embed.{ours}.downsample.conv.weight" in shapes:
                content[f"{theirs}/conv_proj/kernel"] = kernel(f"{ours}.downsample.conv")
                content |= norm(f"{theirs}/gn_proj", f"{ours}.downsample.norm")
    path = saved(tmp_path / "R.npz", content)
    ours, _ = build_pretrained(read_pretrained(str(path)))
    assert_same_logits(ours, loaded_by_timm(path, name, **arguments), images((64, 64)))


@pytest.mark.parametrize("grid", [(6, 6), (2, 2), (5, 2), (3, 7)])
def test_positions_are_resized_as_vit_jax_does(grid, tmp_path):
    """checkpoint.interpolate_posembed of vit_jax is scipy.ndimage.zoom with order 1, the class token kept."""
    content = arrays()
    table = content["Transformer/posembed_input/pos_embedding"]
    zoomed = scipy.ndimage.zoom(
        table[0, 1:].reshape(GRID, GRID, DIM), (grid[0] / GRID, grid[1] / GRID, 1), order=1
    )
    expected = np.concatenate([table[0, :1], zoomed.reshape(-1, DIM)])
    size = (grid[0] * PATCH, grid[1] * PATCH)
    pretrained = read_pretrained(str(saved(tmp_path / "a.npz", content)))
    ours, (change,) = build_pretrained(pretrained, image_size=size)
    np.testing.assert_allclose(ours.pos_embed[0].detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert "bilinear, corners aligned" in change.text
    theirs = loaded_by_timm(tmp_path / "a.npz", img_size=size)
    with torch.no_grad():
        theirs.pos_embed.copy_(torch.from_numpy(expected))
    assert_same_logits(ours, theirs, images(size))


def test_half_precision_arrays(tmp_path):
    content = arrays()
    reference, _ = build_pretrained(read_pretrained(str(saved(tmp_path / "a.npz", content))))
    # numpy knows bfloat16 only as two bytes of unknown kind, which is how big_vision's files come out.
    narrow = {k: (v.view(np.uint32) >> 16).astype(np.uint16).view("V2") for k, v in content.items()}
    ours, _ = build_pretrained(read_pretrained(str(saved(tmp_path / "b.npz", narrow))))
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.pop("Transformer/encoder_norm/bias"), "has no Transformer/encoder_norm/bias"),
        (lambda c: c.pop("Transformer/encoderblock_1/MlpBlock_3/Dense_1/bias"), "has no .*Dense_1/bias"),
        (lambda c: c.update({f"extra{i}": np.zeros(1) for i in range(7)}), r"extra0.*extra4, … \(7 in all\)"),
        (lambda c: c.update({"MAPHead_0/probe": np.zeros(1)}), "pools by attention"),
        (
            lambda c: c.update({"conv_root/kernel": np.zeros((7, 7, 3, 64), np.float32)}),
            "has no gn_root/scale",
        ),
        (lambda c: c.update({"cls": np.array([object()])}), "holds Python objects"),
        (
            lambda c: c.update({"embedding/bias": np.zeros(3, np.float32)}),
            r"of another shape: patch_embed.proj.bias",
        ),
    ],
)
def test_bad_files(change, match, tmp_path):
    content = arrays()
    change(content)
    path = saved(tmp_path / "bad.npz", content)
    with pytest.raises(ValueError, match=match):
        read_pretrained(str(path))


def test_truncated(tmp_path):
    path = saved(tmp_path / "a.npz", arrays())
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cannot be read as .npz \(truncated"):
        read_pretrained(str(path))
