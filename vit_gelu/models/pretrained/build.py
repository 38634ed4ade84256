"""A network from a checkpoint: native activation, adapted to the images at hand, loaded strictly."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vit_gelu.models.layers import hidden_size
from vit_gelu.models.options import pair, whole
from vit_gelu.models.pretrained.change import Change
from vit_gelu.models.pretrained.channels import adapt_channels
from vit_gelu.models.pretrained.checkpoint import FREE, OPTION, Pretrained
from vit_gelu.models.pretrained.keys import account
from vit_gelu.models.pretrained.resize import RESIZINGS, resize_patch_kernel, resize_position_embedding
from vit_gelu.models.vit import VisionTransformer
from vit_gelu.suggest import nearest

DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(VisionTransformer.__init__).parameters.items()
    if name != "self"
}


def build_pretrained(
    pretrained: Pretrained,
    *,
    image_size: int | Sequence[int] | None = None,
    patch_size: int | Sequence[int] | None = None,
    in_channels: int | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    zero_init_head: bool = True,
    **options: Any,
) -> tuple[VisionTransformer, list[Change]]:
    """Build the checkpoint's network for other images and classes, and load it strictly.

    What is None stays as it is in the checkpoint. The same classes keep the head, by their names or, where those
    are not known, by their number; other ones replace it, together with a tanh layer before it (ViT paper, §3.2)
    unless ``representation_size`` asks for that layer's size. Position embeddings and patch kernels are resized as
    in the checkpoint's origin; a fixed sine-cosine embedding is computed again for the new grid.

    Args:
        pretrained: from ``read_pretrained``; its state is copied.
        image_size, patch_size: pixels, one number or (height, width).
        in_channels: channels of the images.
        num_classes: 0 leaves the head out.
        class_names: of the images at hand; empty: not known.
        zero_init_head: a new head starts at zero; else as ``init`` draws it.
        options: what may differ without changing the function in evaluation (dropout, drop_path, attention,
            mlp_memory, seed, …). Others may be given if they are the checkpoint's own; None is not given.

    Returns:
        The network, in training mode, and what differs from the checkpoint.

    Raises:
        ValueError: an option that contradicts the checkpoint, a size that does not fit; see ``VisionTransformer``.
    """
    given = {name: value for name, value in options.items() if value is not None}
    _check(pretrained, given)
    own = {**DEFAULTS, **pretrained.options}
    image = _sides("image_size", image_size, own)
    patch = _sides("patch_size", patch_size, own)
    _check_sizes(pretrained, image, patch, asked=patch_size is not None)
    channels = own["in_channels"] if in_channels is None else whole("in_channels", in_channels)
    classes = own["num_classes"] if num_classes is None else whole("num_classes", num_classes, minimum=0)
    changes: list[Change] = []
    state = dict(pretrained.state)  # its tensors are never changed in place

    renamed = bool(class_names and pretrained.class_names) and tuple(class_names) != pretrained.class_names
    new_head = classes != own["num_classes"] or renamed
    representation = own["representation_size"]
    if new_head:
        others = _first_other(pretrained.class_names, class_names) if renamed else ""
        representation = _replace_head(state, own, classes, given, zero_init_head, others, changes)
    elif num_classes:
        sure = (
            "" if class_names and pretrained.class_names else "; whether they are the same ones is not known"
        )
        changes.append(Change("head", f"{classes} classes", f"{classes} classes", f"kept{sure}"))
    _adapt_stem(state, pretrained, channels, patch, changes)
    new_grid = _adapt_positions(state, pretrained, image, patch, changes)
    config = {
        **{name: value for name, value in own.items() if name not in FREE},
        **{name: value for name, value in given.items() if name in FREE},
        "image_size": list(image),
        "patch_size": list(patch),
        "in_channels": channels,
        "num_classes": classes,
        "representation_size": representation,
        "zero_init_head": new_head and zero_init_head,
    }
    model = VisionTransformer(**config)
    built = model.state_dict()
    if new_head and classes:
        state |= {key: built[key] for key in ("head.weight", "head.bias")}
    if new_grid and own["position_embedding"] == "sincos2d":
        state["pos_embed"] = built["pos_embed"]
    account({name: value.shape for name, value in built.items()}, state, pretrained.source)
    model.load_state_dict(state, strict=True)
    return model, changes


def _sides(name: str, value: int | Sequence[int] | None, own: dict[str, Any]) -> tuple[int, int]:
    return pair(name, own[name] if value is None else value)


def _first_other(old: Sequence[str], new: Sequence[str]) -> str:
    """Which names differ, if the numbers do not say it."""
    if len(old) != len(new):
        return ""
    at = next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
    return f"other classes: number {at} was {old[at]!r} and is {new[at]!r}; "


def _check(pretrained: Pretrained, given: dict[str, Any]) -> None:
    own = {**DEFAULTS, **pretrained.options}
    contradictions: dict[str, str] = {}
    for name, value in given.items():
        if name not in DEFAULTS:
            close = nearest(name, DEFAULTS, n=1)
            hint = f" Did you mean --model.{close[0]}?" if close else ""
            raise ValueError(f"--model.{name}: no such option.{hint}")
        if name not in FREE and not _agrees(name, value, own):
            reason = ""
            if name in ("activation", "activation_kwargs"):
                reason = "; it is loaded with its own, and swapped afterwards"
            contradictions[name] = (
                f"--model.{name} {value}: contradicts {OPTION} {pretrained.source}, "
                f"where it is {_own_value(name, own)}{reason}"
            )
    if contradictions:
        first, *more = contradictions
        also = f"\nSo do: {', '.join(f'--model.{name} {given[name]}' for name in more)}" if more else ""
        raise ValueError(contradictions[first] + also)


def _own_value(name: str, own: dict[str, Any]) -> Any:
    if name == "mlp_hidden" or (name == "mlp_ratio" and own["mlp_hidden"] is not None):
        return f"{_hidden(own)} hidden units"
    return "null" if own[name] is None else own[name]


def _hidden(own: dict[str, Any]) -> int:
    gated = own["activation"] in ("swiglu", "geglu", "reglu")
    return own["mlp_hidden"] or hidden_size(own["embed_dim"], own["mlp_ratio"], gated=gated)


def _agrees(name: str, value: Any, own: dict[str, Any]) -> bool:
    if name == "layer_scale":  # where it starts, and the checkpoint says where it is
        return own["layer_scale"] is not None
    if name == "mlp_hidden":
        return value == _hidden(own)
    if name == "mlp_ratio":
        return _hidden({**own, "mlp_ratio": value, "mlp_hidden": None}) == _hidden(own)
    if name == "fc_norm" and own["fc_norm"] is None:
        return value == (own["pooling"] == "mean")
    if name == "activation_kwargs":
        return (value or {}) == (own["activation_kwargs"] or {})
    return value == own[name]


def _check_sizes(
    pretrained: Pretrained, image: tuple[int, int], patch: tuple[int, int], *, asked: bool
) -> None:
    for side, step in zip(image, patch, strict=True):
        if side % step:
            near = [n for n in (side // step * step, (side // step + 1) * step) if n]
            of = "" if asked else f" of {OPTION} {pretrained.source}"
            raise ValueError(
                f"--model.image_size {side}: not divisible by the patch size {step}{of}; nearest: "
                f"{', '.join(map(str, near))}" + ("" if asked else ", or give another --model.patch_size")
            )


def _replace_head(
    state: dict[str, Tensor],
    own: dict[str, Any],
    classes: int,
    given: dict[str, Any],
    zero: bool,
    others: str,
    changes: list[Change],
) -> int | None:
    """Take the old head out of the state; returns the size of the layer before the new one."""
    for key in ("head.weight", "head.bias"):
        state.pop(key, None)
    how = "left out" if not classes else "new, zero" if zero else f"new, drawn ({given.get('init', 'timm')})"

    def words(n: int) -> str:
        return f"{n} classes" if n else "none"

    changes.append(Change("head", words(own["num_classes"]), words(classes), others + how))
    representation = own["representation_size"]
    if representation is not None and given.get("representation_size") is None:
        for key in ("pre_logits.fc.weight", "pre_logits.fc.bias"):
            state.pop(key)
        changes.append(Change("pre_logits", f"{representation} units", "none", "left out with the old head"))
        return None
    return representation


def _adapt_stem(
    state: dict[str, Tensor],
    pretrained: Pretrained,
    channels: int,
    patch: tuple[int, int],
    changes: list[Change],
) -> None:
    own = pretrained.options
    stem = own.get("stem", "patch")
    old_patch = pair("patch_size", own["patch_size"])
    if patch != old_patch:
        if stem != "patch":
            whose = "convolutions" if stem == "conv" else "patches of a ResNet's feature map"
            raise ValueError(
                f"--model.patch_size {list(patch)}: {OPTION} {pretrained.source} has {whose} ({stem}), whose kernels "
                f"are not resized; it is {own['patch_size']}"
            )
        resizing = RESIZINGS[pretrained.resizing or pretrained.origin]
        key = "patch_embed.proj.weight"
        state[key] = resize_patch_kernel(state[key], patch, resizing)
        changes.append(
            Change(
                "patch_embed",
                f"{old_patch[0]}x{old_patch[1]} pixels",
                f"{patch[0]}x{patch[1]} pixels",
                f"pseudo-inverse of resizing ({resizing.text})",
            )
        )
    if channels != own["in_channels"]:
        first = {
            "patch": ("proj.weight",),
            "conv": ("convs.0.conv.weight",),
        }.get(stem, ("backbone.conv.weight", "backbone.stem.conv.weight"))
        key = next(k for k in (f"patch_embed.{name}" for name in first) if k in state)
        state[key], how = adapt_channels(state[key], channels)
        if key.startswith(
            "patch_embed.backbone."
        ):  # the sum of standardised kernels is not the standardised sum
            how += ", and standardised as a whole"
        before, after = (f"{n} channel{'s' * (n != 1)}" for n in (own["in_channels"], channels))
        changes.append(Change("input", before, after, how))


def _adapt_positions(
    state: dict[str, Tensor],
    pretrained: Pretrained,
    image: tuple[int, int],
    patch: tuple[int, int],
    changes: list[Change],
) -> bool:
    """Resize the position embeddings in the state; whether the grid is another."""
    own = pretrained.options
    old_image, old_patch = pair("image_size", own["image_size"]), pair("patch_size", own["patch_size"])
    old = (old_image[0] // old_patch[0], old_image[1] // old_patch[1])
    new = (image[0] // patch[0], image[1] // patch[1])
    if old == new or "pos_embed" not in state:
        return old != new
    resizing = RESIZINGS[pretrained.resizing or pretrained.origin]
    if own.get("position_embedding") == "sincos2d":
        how = "computed again (sincos2d)"
    else:
        kept = state["pos_embed"].shape[1] - old[0] * old[1]
        how = f"resized ({resizing.text})" + (
            f", {kept} token{'s' * (kept > 1)} before them kept" if kept else ""
        )
        state["pos_embed"] = resize_position_embedding(state["pos_embed"], old, new, resizing)
    changes.append(
        Change("position_embedding", f"{old[0]}x{old[1]} patches", f"{new[0]}x{new[1]} patches", how)
    )
    return True
