"""Which files of an image folder are images, of which part and class."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from vit_gelu.suggest import nearest

log = logging.getLogger(__name__)

# As torchvision's ImageFolder.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Listing:
    """The image files of one part: paths sorted within each class, one label per path."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]


def list_folder(folder: Path, where: str) -> tuple[dict[str, Listing], tuple[str, ...]]:
    """All image files of an image folder by part (train, test, perhaps val), and the class names."""
    present = [name for name in _folders(folder) if name in ("train", "val", "test")]
    if "train" not in present or len(present) == 1:
        lacks = "train/" if "train" not in present else "test/ and val/"
        found = _folders(folder)
        close = nearest(lacks.split("/")[0], found, n=1)
        hint = f" (did you mean its {close[0]}/?)" if close else ""
        raise ValueError(
            f"{where} has no {lacks}{hint}; found: {', '.join(found[:8]) or 'no folders'}\n"
            "An image folder has train/<class>/* and test/<class>/* (or val/<class>/*)"
        )
    class_names = tuple(_folders(folder / "train"))
    if len(class_names) < 2:
        raise ValueError(f"{where}: train/ must have at least two class folders; found {len(class_names)}")
    unused: list[Path] = []
    listings = {}
    for name in present:
        found = _folders(folder / name)
        differ = sorted(set(class_names) ^ set(found))
        if differ:
            has, lacks = ("train", name) if differ[0] in class_names else (name, "train")
            raise ValueError(f"{where}: class folder {differ[0]!r} is in {has}/ but not in {lacks}/")
        unused += [path for path in (folder / name).iterdir() if path.is_file() and path.name[0] != "."]
        listings[name] = _list_part(folder / name, class_names, where, unused)
    if "test" not in listings:
        listings["test"] = listings.pop("val")
    if unused:
        shown = ", ".join(str(path.relative_to(folder)) for path in unused[:3])
        log.warning("%s: %d files are not images of a class, and are not used: %s%s",
                    where, len(unused), shown, " …" if len(unused) > 3 else "")  # fmt: skip
    return listings, class_names


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and entry.name[0] != ".")


def _list_part(part: Path, class_names: tuple[str, ...], where: str, unused: list[Path]) -> Listing:
    paths: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(class_names):
        before = len(paths)
        for place, folders, files in os.walk(part / class_name, followlinks=True):
            folders[:] = sorted(name for name in folders if name[0] != ".")
            for file in sorted(name for name in files if name[0] != "."):
                (paths if file.lower().endswith(SUFFIXES) else unused).append(Path(place, file))
        if len(paths) == before:
            raise ValueError(
                f"{where}: class folder {part.name}/{class_name} has no image ({', '.join(SUFFIXES)})"
            )
        labels += [label] * (len(paths) - before)
    return Listing(tuple(paths), tuple(labels))
