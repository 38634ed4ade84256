"""Images in memory as a checkpoint knows them: how they come to its size, in words for people."""

from collections.abc import Sequence


def enlarged(own: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether ``size`` has more pixels than ``own``, in the same proportions."""
    return size != own and size[0] >= own[0] and size[0] * own[1] == size[1] * own[0]


def how_resized(own: tuple[int, int], size: tuple[int, int]) -> str:
    """A line that says what becomes of images of height and width ``own`` at a checkpoint's ``size``.

    >>> how_resized((32, 32), (224, 224))
    "images: enlarged from 32x32 to 224x224, the checkpoint's size (another: --data.upsample or --data.image_size)"
    """
    change, whose = f"from {_text(own)} to {_text(size)}", "the checkpoint's size"
    if enlarged(own, size):
        return f"images: enlarged {change}, {whose} (another: --data.upsample or --data.image_size)"
    if size[0] >= own[0] and size[1] >= own[1]:
        return f"images: resized {change}, {whose} (another: --data.image_size)"
    keep = own[0] if own[0] == own[1] else f"[{own[0]},{own[1]}]"
    return (
        f"images: SHRUNK {change}, {whose}: detail is lost. To keep it, and resize the checkpoint's position "
        f"embeddings instead: --data.image_size {keep}"
    )


def decoded(size: tuple[int, int]) -> str:
    """The same for image files."""
    return f"images: decoded at {_text(size)}, the checkpoint's size (another: --data.image_size)"


def both_or_neither(
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    own_mean: Sequence[float],
    own_std: Sequence[float],
) -> tuple[list[float], list[float], str]:
    """Mean and std of a run from a checkpoint that has its own, and a line about them.

    Raises:
        ValueError: one is given, and the other is not.
    """
    known = f"mean {_rounded(own_mean)}, std {_rounded(own_std)}"
    if (mean is None) != (std is None):
        one, other = ("std", "mean") if mean is None else ("mean", "std")
        raise ValueError(
            f"--data.{one}: with a checkpoint give --data.{other} as well, or neither; the checkpoint's are {known}"
        )
    if mean is None or std is None:
        return list(own_mean), list(own_std), f"{known}: the checkpoint's"
    return (
        list(mean),
        list(std),
        f"mean {_rounded(mean)}, std {_rounded(std)}: as asked for (the checkpoint's: {known})",
    )


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]
