"""Google's checkpoints: ``.npz`` files of vit_jax and big_vision, their names and layouts."""

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_gelu.models.pretrained.checkpoint import OPTION
from vit_gelu.models.pretrained.infer import infer_options

Arrays = dict[str, np.ndarray]
PREFIXES = ("opt/target/", "params/img/", "params/")


class _Reader:
    """Hands arrays out by name as tensors, and knows which ones nobody has asked for."""

    def __init__(self, arrays: Arrays, where: str) -> None:
        self.arrays, self.where, self.used = arrays, where, set[str]()

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __call__(self, name: str) -> Tensor:
        if name not in self.arrays:
            raise ValueError(
                f"{OPTION} {self.where}: has no {name}, so it is no Vision Transformer of Google's"
            )
        self.used.add(name)
        return torch.from_numpy(np.ascontiguousarray(self.arrays[name]))


def from_npz(
    arrays: Arrays, where: str, image_size: tuple[int, int] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """State dict under timm's names, options, and what was assumed.

    JAX keeps a matrix as (inputs, outputs), a kernel as (height, width, in, out), and the projections of
    attention by head: query (dim, heads, width), out (heads, width, dim).

    Args:
        arrays: of the file; see ``files.read_npz``.
        where: names the checkpoint in messages.
        image_size: see ``infer_options``.

    Raises:
        ValueError: names are missing or surplus, or parts are there that our ViT has not.
    """
    prefix = next((p for p in PREFIXES if any(k.startswith(f"{p}embedding/") for k in arrays)), "")
    foreign = [k for k in arrays if not k.startswith(prefix)]
    read = _Reader({k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}, where)
    if any(name.startswith("MAPHead") for name in read.arrays):
        raise ValueError(f"{OPTION} {where}: pools by attention (MAPHead), which our ViT does not")
    state: dict[str, Tensor] = {}
    _embedding(read, state)
    heads = _blocks(read, state)
    state["norm.weight"] = read("Transformer/encoder_norm/scale")
    state["norm.bias"] = read("Transformer/encoder_norm/bias")
    for theirs, ours in (("pre_logits", "pre_logits.fc"), ("head", "head")):
        if f"{theirs}/kernel" in read:
            state[f"{ours}.weight"] = read(f"{theirs}/kernel").T.contiguous()
            state[f"{ours}.bias"] = read(f"{theirs}/bias")
    surplus = sorted(set(read.arrays) - read.used) + foreign
    if surplus:
        more = f", … ({len(surplus)} in all)" if len(surplus) > 5 else ""
        raise ValueError(
            f"{OPTION} {where}: arrays that our ViT has no use for: {', '.join(surplus[:5])}{more}"
        )
    options, notes = infer_options(state, "google", where, image_size, heads)
    notes = [note for note in notes if not note.startswith("activation")]
    notes.append("activation gelu (exact), as timm builds it; JAX's own gelu is the tanh form by default")
    return state, options, notes


def _embedding(read: _Reader, state: dict[str, Tensor]) -> None:
    def kernel(name: str) -> Tensor:
        return read(name).permute(3, 2, 0, 1).contiguous()

    def norm(theirs: str, ours: str) -> None:
        state[f"{ours}.weight"] = read(f"{theirs}/scale").flatten()
        state[f"{ours}.bias"] = read(f"{theirs}/bias").flatten()

    backbone = "patch_embed.backbone."
    units = sorted({m[0] for name in read.arrays if (m := re.match(r"block\d+/unit\d+(?=/)", name))})
    if "conv_root/kernel" in read:
        stem = f"{backbone}stem." if units else backbone
        state[f"{stem}conv.weight"] = kernel("conv_root/kernel")
        norm("gn_root", f"{stem}norm")
    for unit in units:
        stage, block = (int(n) - 1 for n in re.findall(r"\d+", unit))
        ours = f"{backbone}stages.{stage}.blocks.{block}."
        for r in (1, 2, 3):
            state[f"{ours}conv{r}.weight"] = kernel(f"{unit}/conv{r}/kernel")
            norm(f"{unit}/gn{r}", f"{ours}norm{r}")
        if f"{unit}/conv_proj/kernel" in read:
            state[f"{ours}downsample.conv.weight"] = kernel(f"{unit}/conv_proj/kernel")
            norm(f"{unit}/gn_proj", f"{ours}downsample.norm")
    state["patch_embed.proj.weight"] = kernel("embedding/kernel")
    state["patch_embed.proj.bias"] = read("embedding/bias")
    if "cls" in read:
        state["cls_token"] = read("cls")
    position = "pos_embedding" if "pos_embedding" in read else "Transformer/posembed_input/pos_embedding"
    state["pos_embed"] = read(position)


def _blocks(read: _Reader, state: dict[str, Tensor]) -> int:
    """Fills in the blocks; returns the number of heads."""
    stacked = "Transformer/encoderblock/LayerNorm_0/scale" in read  # big_vision under lax.scan
    if stacked:
        depth = len(read.arrays["Transformer/encoderblock/LayerNorm_0/scale"])
    else:
        indices = [m[1] for n in read.arrays if (m := re.match(r"Transformer/encoderblock_(\d+)/", n))]
        depth = 1 + max(map(int, indices), default=-1)
    if depth == 0:
        raise ValueError(f"{OPTION} {read.where}: has no Transformer/encoderblock_0")
    # vit_jax counts the parts of a block in one sequence, big_vision each kind on its own.
    first = "Transformer/encoderblock" + ("" if stacked else "_0")
    attention, norm2, mlp = (1, 2, 3) if f"{first}/LayerNorm_2/scale" in read else (0, 1, 0)
    heads = 0
    for i in range(depth):
        theirs = first if stacked else f"Transformer/encoderblock_{i}"

        def part(name: str, theirs: str = theirs, i: int = i) -> Tensor:
            array = read(f"{theirs}/{name}")
            return array[i] if stacked else array

        mha = f"MultiHeadDotProductAttention_{attention}"
        query = part(f"{mha}/query/kernel")
        if query.ndim != 3:
            raise ValueError(
                f"{OPTION} {read.where}: {theirs}/{mha}/query/kernel is not (width, heads, head width)"
            )
        heads = query.shape[1]
        ours = f"blocks.{i}."
        kinds = ("query", "key", "value")
        state[f"{ours}attn.qkv.weight"] = torch.cat([part(f"{mha}/{k}/kernel").flatten(1).T for k in kinds])
        state[f"{ours}attn.qkv.bias"] = torch.cat([part(f"{mha}/{k}/bias").flatten() for k in kinds])
        state[f"{ours}attn.proj.weight"] = part(f"{mha}/out/kernel").flatten(0, 1).T.contiguous()
        state[f"{ours}attn.proj.bias"] = part(f"{mha}/out/bias")
        for theirs_norm, ours_norm in (("LayerNorm_0", "norm1"), (f"LayerNorm_{norm2}", "norm2")):
            state[f"{ours}{ours_norm}.weight"] = part(f"{theirs_norm}/scale")
            state[f"{ours}{ours_norm}.bias"] = part(f"{theirs_norm}/bias")
        for r in (0, 1):
            dense = f"MlpBlock_{mlp}/Dense_{r}"
            state[f"{ours}mlp.fc{r + 1}.weight"] = part(f"{dense}/kernel").T.contiguous()
            state[f"{ours}mlp.fc{r + 1}.bias"] = part(f"{dense}/bias")
    return heads
