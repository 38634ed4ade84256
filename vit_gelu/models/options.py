"""What a user may ask of a ViT: values are checked here, and refused in the words of the command line."""

from collections.abc import Sequence
from typing import Any

from vit_gelu.suggest import unknown

POOLINGS = ("cls", "mean")
POSITION_EMBEDDINGS = ("learned", "sincos2d", "none")
ATTENTIONS = (
    "auto",
    "explicit",
    "matmul",
    "strided",
    "amx",
    "avx512",
    "triton",
    "sdpa",
    "flash",
    "efficient",
    "cudnn",
    "math",
)
MLP_MEMORIES = ("fast", "lean")
RESIDUAL_PRECISIONS = ("full", "half")
STEMS = ("patch", "conv", "resnet_stem", "resnet26", "resnet50")
INITS = ("timm", "jax", "mimetic")


def choice(option: str, value: Any, choices: Sequence[str]) -> str:
    """``value`` if it is one of ``choices``.

    Raises:
        ValueError: it is not; the message has the nearest ones.

    >>> choice("pooling", "mean", POOLINGS)
    'mean'
    """
    if value not in choices:
        raise ValueError(f"--model.{option}: {unknown(option.replace('_', ' '), str(value), choices)}")
    return value


def whole(option: str, value: Any, *, minimum: int = 1) -> int:
    """``value`` if it is an integer of at least ``minimum``; ValueError otherwise.

    >>> whole("depth", 12)
    12
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"--model.{option} {value}: must be a whole number, at least {minimum}")
    return value


def rate(option: str, value: Any) -> float:
    """``value`` if it can be a rate of dropping, 0 <= value < 1; ValueError otherwise.

    >>> rate("dropout", 0.1)
    0.1
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"--model.{option} {value}: must be at least 0 and less than 1")
    return float(value)


def positive(option: str, value: Any) -> float:
    """``value`` if it is a positive finite number; ValueError otherwise.

    >>> positive("layer_scale", 1e-5)
    1e-05
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"--model.{option} {value}: must be a positive number")
    return float(value)


def pair(option: str, value: Any) -> tuple[int, int]:
    """A size in pixels, given as one number or as (height, width); ValueError for anything else.

    >>> pair("image_size", 32), pair("patch_size", [4, 8])
    ((32, 32), (4, 8))
    """
    if isinstance(value, int):
        value = (value, value)
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValueError(f"--model.{option} {value}: must be one whole number, or two: height, width")
    return whole(option, value[0]), whole(option, value[1])


def divisors(n: int) -> list[int]:
    """The whole numbers that divide ``n``, ascending.

    >>> divisors(32)
    [1, 2, 4, 8, 16, 32]
    """
    low = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return low + [n // d for d in reversed(low) if d * d != n]


def must_divide(option: str, value: int, whole_name: str, whole_size: int, multiple_of: int = 1) -> None:
    """Check that ``value`` divides ``whole_size`` and is a multiple of ``multiple_of``.

    Raises:
        ValueError: it does not; the message lists the values that would.

    >>> must_divide("patch_size", 4, "image size", 32)
    """
    valid = [d for d in divisors(whole_size) if d % multiple_of == 0]
    if value not in valid:
        fault = (
            f"is not a multiple of {multiple_of}, the stem's stride"
            if value % multiple_of
            else f"does not divide the {whole_name} {whole_size}"
        )
        kind = "divisors" if multiple_of == 1 else "valid"
        raise ValueError(
            f"--model.{option} {value} {fault}; {kind}: {', '.join(map(str, valid)) or 'none for this size'}"
        )
