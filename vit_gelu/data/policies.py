"""Augmentation policies by name or as a list of operations: what ``--data.augment`` takes.

A policy is a preset's name (``crop_flip``), or operations in the order in which they are applied:
``"random_crop(4, mode=constant), flip, erase(0.25)"``, in brackets if you like, or as a YAML list of
strings. Arguments come in order or by name; what is left out has its default. A preset may stand among the
operations.
"""

import dataclasses
import re
from collections.abc import Sequence

from vit_gelu.data import automatic, color, erasing, geometry, warp
from vit_gelu.data.augment import Operation, Policy
from vit_gelu.suggest import unknown

OPERATIONS: dict[str, type[Operation]] = {
    operation.name: operation
    for operation in (
        geometry.RandomCrop,
        geometry.Flip,
        geometry.AlternatingFlip,
        warp.RandomResizedCrop,
        warp.Affine,
        color.ColorJitter,
        erasing.Erase,
        automatic.RandAugment,
        automatic.TrivialAugment,
    )
}

PRESETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "crop_flip": ("random_crop(4)", "flip"),
    "crop_alternating_flip": ("random_crop(4)", "alternating_flip"),
    "digits": ("affine(degrees=14, scale=0.15, shear=8, translate=0.1)",),
    "cifar_randaugment": ("random_crop(4)", "flip", "randaugment(2, 9)"),
    "cifar_trivialaugment": ("random_crop(4)", "flip", "trivialaugment"),
    "cifar_strong": ("random_crop(4)", "flip", "randaugment(2, 9)", "erase(0.25)"),
    "imagenet": ("random_resized_crop", "flip"),
    "imagenet_strong": ("random_resized_crop", "flip", "randaugment(2, 9)", "erase(0.25, fill=noise)"),
}

_CALL = re.compile(r"(?P<name>\w+)\s*(?:\((?P<arguments>[^()]*)\))?")
_TOP_LEVEL_COMMA = re.compile(r",(?![^(]*\))")


def build_policy(
    spec: str | Sequence[str], image_size: tuple[int, int] | None = None, channels: int | None = None
) -> Policy:
    """The policy that a preset's name or a list of operations describes.

    Args:
        spec: a preset, operations separated by commas, or a sequence of either.
        image_size: height and width in pixels, to check that every operation fits them.
        channels: of the images, likewise.

    Raises:
        ValueError: unknown name (with the nearest valid ones), wrong argument (with the rule), or an
            operation that does not fit the images.

    >>> build_policy("random_crop(2), flip").spec()
    ['random_crop(padding=2, mode=reflect, fill=0)', 'flip(p=0.5)']
    """
    entries = _entries(spec)
    operations = [parse_operation(call) for entry in entries for call in PRESETS.get(entry, (entry,))]
    if image_size is not None and channels is not None:
        for operation in operations:
            operation.check(image_size, channels)
    return Policy(operations, name=entries[0] if len(entries) == 1 and entries[0] in PRESETS else "")


def _entries(spec: str | Sequence[str]) -> list[str]:
    # Joined before it is split: YAML cuts [random_crop(4, edge), flip] at every comma.
    inside = (spec if isinstance(spec, str) else ", ".join(spec)).strip()
    if inside.startswith("[") and inside.endswith("]"):
        inside = inside[1:-1]
    parts = (part.strip().strip("'\"").strip() for part in _TOP_LEVEL_COMMA.split(inside))
    return [part for part in parts if part]


def parse_operation(text: str) -> Operation:
    """One operation from ``name`` or ``name(argument, key=value, ...)``.

    >>> parse_operation("flip(0.25)")
    Flip(p=0.25)
    """
    match = _CALL.fullmatch(text)
    if match is None:
        raise ValueError(
            f"--data.augment: cannot read {text!r}; write an operation as name, or name(argument, key=value)"
        )
    if match["name"] not in OPERATIONS:
        raise ValueError(
            "--data.augment: " + unknown("policy or operation", match["name"], [*PRESETS, *OPERATIONS])
        )
    kind = OPERATIONS[match["name"]]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, object] = {}
    arguments = [part.strip() for part in (match["arguments"] or "").split(",") if part.strip()]
    for position, argument in enumerate(arguments):
        name, equals, value = (part.strip() for part in argument.rpartition("="))
        if not equals:
            if len(values) < position or position >= len(fields):
                raise ValueError(
                    f"--data.augment {text}: {value!r} is one argument too many, or follows a named one;"
                    f" {kind.name} takes {_signature(kind)}"
                )
            name = list(fields)[position]
        if name not in fields:
            raise ValueError(f"--data.augment {text}: " + unknown(f"argument of {kind.name}", name, fields))
        if name in values:
            raise ValueError(f"--data.augment {text}: {name} is given twice")
        values[name] = _convert(value, fields[name].type, f"--data.augment {text}: {name}")
    return kind(**values)


def _signature(kind: type[Operation]) -> str:
    return ", ".join(f"{f.name}={f.default}" for f in dataclasses.fields(kind)) or "no arguments"


def _convert(text: str, kind: object, what: str) -> object:
    """A number where the argument is one, else the word as it stands."""
    for number in (int, float):
        if kind == number or (kind == int | str and number is int):
            try:
                return number(text)
            except ValueError:
                if kind == number:
                    rule = "a whole number" if number is int else "a number"
                    raise ValueError(f"{what} must be {rule}, not {text!r}") from None
    return text


def describe_policies() -> str:
    """Every named policy with its operations, and every operation with its arguments: a help text.

    >>> "crop_flip" in describe_policies()
    True
    """
    lines = [
        "--data.augment takes a policy, or operations: --data.augment 'random_crop(4), flip, erase(0.25)'",
        "",
    ]
    lines += ["policies:"]
    lines += [f"  {name:<24}{', '.join(operations) or '-'}" for name, operations in PRESETS.items()]
    lines += ["", "operations and their arguments:"]
    for name, operation in OPERATIONS.items():
        arguments = ", ".join(
            field.name if field.default is dataclasses.MISSING else f"{field.name}={field.default}"
            for field in dataclasses.fields(operation)
            if field.init
        )
        lines.append(f"  {name}({arguments})")
    return "\n".join(lines) + "\n"
