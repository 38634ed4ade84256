"""Are these arrays images with labels? The rules, each with a message that names the key."""

from collections.abc import Mapping

import numpy as np
import torch
from einops import rearrange

from vit_gelu.data.arrays import ImageArrays, Parts


def checked_parts(arrays: Mapping[str, np.ndarray], where: str) -> Parts:
    """Turn the arrays of an array file into parts.

    Args:
        arrays: keys and shapes as ``vit_gelu.data.array_file`` has them; those required are there.
        where: how messages call the data set.

    Raises:
        ValueError: names the key, what it holds and the rule.
    """
    names = ["train", "val", "test"] if {"val_images", "val_labels"} & arrays.keys() else ["train", "test"]
    parts = {}
    for name in names:
        for kind, other in (("images", "labels"), ("labels", "images")):
            if f"{name}_{kind}" not in arrays:
                raise ValueError(f"{where}: {name}_{other} is there but {name}_{kind} is missing")
        images = _images(arrays[f"{name}_images"], f"{where}: {name}_images")
        labels = _labels(arrays[f"{name}_labels"], f"{where}: {name}_labels")
        if len(images) != len(labels):
            raise ValueError(
                f"{where}: {name}_images has {len(images)} images but {name}_labels {len(labels)} labels"
            )
        parts[name] = images, labels
    size = parts["train"][0].shape[1:]
    for name in names:
        other_size = parts[name][0].shape[1:]
        if other_size != size:
            raise ValueError(
                f"{where}: {name}_images are {_show(other_size)} but train_images {_show(size)} "
                "(height × width × channels); all must be of one size"
            )
    class_names = _class_names(arrays.get("class_names"), parts["train"][1], where)
    for name in names:
        _check_range(parts[name][1], class_names, f"{where}: {name}_labels")
    seen = np.bincount(parts["train"][1], minlength=len(class_names))
    if not seen.all():
        label = int((seen == 0).argmax())
        raise ValueError(
            f"{where}: train_labels has no image of class {label} ({class_names[label]}); labels must be "
            f"0 … {len(class_names) - 1} without gaps"
        )
    tensors = {
        name: ImageArrays(rearrange(torch.from_numpy(images), "n h w c -> n c h w"), torch.from_numpy(labels))
        for name, (images, labels) in parts.items()
    }
    return Parts(tensors["train"], tensors.get("val"), tensors["test"], class_names)


def _show(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _images(value: np.ndarray, where: str) -> np.ndarray:
    if value.dtype != np.uint8:
        hint = "; scale 0-1 floats: (255 * x).round().astype('uint8')" if value.dtype.kind == "f" else ""
        raise ValueError(f"{where} is {value.dtype}; pixels must be uint8, 0 to 255{hint}")
    if value.ndim == 3:
        value = rearrange(value, "n h w -> n h w 1")
    if value.ndim != 4 or value.shape[3] not in (1, 3):
        hint = ""
        if value.ndim == 4 and value.shape[1] in (1, 3):
            hint = "; channels come last: x.transpose(0, 2, 3, 1)"
        elif value.ndim == 4 and value.shape[3] == 4:
            hint = "; drop the alpha channel: x[..., :3]"
        raise ValueError(
            f"{where} has shape {value.shape}; it must be (n, h, w) or (n, h, w, 1) for grey images, "
            f"(n, h, w, 3) for RGB{hint}"
        )
    if 0 in value.shape:
        raise ValueError(f"{where} is empty: shape {value.shape}")
    return np.ascontiguousarray(value)


def _labels(value: np.ndarray, where: str) -> np.ndarray:
    if value.dtype.kind not in "iu":
        hint = "x.astype('int64')"
        if value.dtype.kind in "US":
            hint = "class_names, x = np.unique(x, return_inverse=True)"
        elif value.ndim == 2 and value.shape[1] > 1:
            hint = "for one-hot labels x.argmax(1)"
        raise ValueError(f"{where} is {value.dtype}; labels must be integers: {hint}")
    if value.ndim == 2 and value.shape[1] == 1:
        value = value[:, 0]
    if value.ndim != 1:
        hint = "; for one-hot labels: x.argmax(1)" if value.ndim == 2 else ""
        raise ValueError(
            f"{where} has shape {value.shape}; it must be (n,) or (n, 1), one class per image{hint}"
        )
    return value.astype(np.int64)


def _class_names(value: np.ndarray | None, train_labels: np.ndarray, where: str) -> tuple[str, ...]:
    if value is None:
        names = [str(label) for label in range(int(train_labels.max()) + 1)]
    elif value.ndim != 1 or value.dtype.kind not in "US":
        raise ValueError(
            f"{where}: class_names is {value.dtype} of shape {value.shape}; it must be a list of texts"
        )
    else:
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in value.tolist()]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{where}: class_names has {', '.join(sorted(twice))} twice")
    if len(names) < 2:
        raise ValueError(f"{where}: there must be at least two classes; found {len(names)}")
    return tuple(names)


def _check_range(labels: np.ndarray, class_names: tuple[str, ...], where: str) -> None:
    wrong = (labels < 0) | (labels >= len(class_names))
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(
            f"{where}[{at}] is {labels[at]}; labels must be 0 … {len(class_names) - 1} "
            f"({len(class_names)} classes)"
        )
