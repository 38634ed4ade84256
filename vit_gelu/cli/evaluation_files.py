"""What ``vit-gelu evaluate`` leaves behind: two tables, a picture and a record."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vit_gelu.cli.confusion import save_confusion
from vit_gelu.cli.errors import UsageError
from vit_gelu.training.record import write_json
from vit_gelu.whole_file import whole_file

PER_CLASS, CONFUSION, PICTURE, RECORD = "per_class.csv", "confusion.csv", "confusion.png", "evaluation.json"
FILES = (PER_CLASS, CONFUSION, PICTURE, RECORD)
PROBE = "probe.json"
SCHEMA = 1


def class_rows(confusion: Tensor, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per class, in the order of the labels.

    ``accuracy`` is correct / n (recall), ``precision`` correct / predicted; None where there is nothing to
    divide by. ``taken_for`` is the wrong class that most of its images were taken for (the first of equals;
    None where all were right), ``taken_for_n`` how many were.

    Args:
        confusion: int64 counts, shape (num_classes, num_classes), rows true.
        class_names: one per label.
    """
    rows = []
    wrong = confusion.clone().fill_diagonal_(0)
    for label, name in enumerate(class_names):
        n, predicted = int(confusion[label].sum()), int(confusion[:, label].sum())
        correct, other = int(confusion[label, label]), int(wrong[label].argmax())
        missed = int(wrong[label, other])
        rows.append(
            {
                "label": label,
                "class": name,
                "n": n,
                "correct": correct,
                "accuracy": correct / n if n else None,
                "predicted": predicted,
                "precision": correct / predicted if predicted else None,
                "taken_for": class_names[other] if missed else None,
                "taken_for_n": missed,
            }
        )
    return rows


def refuse_to_overwrite(
    folder: Path, overwrite: bool, files: Sequence[str] = FILES, what: str = "an evaluation"
) -> None:
    """Raise a ``UsageError`` where the folder holds one of the files, or is none."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder}: is a file, not a folder")
    present = [name for name in files if (folder / name).exists()]
    if present and not overwrite:
        raise UsageError(
            f"--out {folder}: holds {what} already ({', '.join(present)}); nothing is overwritten: "
            "choose another --out, or add --overwrite"
        )


def write_evaluation(
    folder: Path, record: dict[str, Any], confusion: Tensor, class_names: Sequence[str], title: str
) -> None:
    """Write the four files, the record last: where it is, all of it is there.

    Args:
        folder: made if need be.
        record: for ``evaluation.json``; its ``per_class`` rows are those of ``per_class.csv``.
        confusion: int64 counts, shape (num_classes, num_classes), rows true.
        class_names: one per label.
        title: of the picture.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    rows = record["per_class"]
    _write_csv(folder / PER_CLASS, [list(rows[0]), *(list(row.values()) for row in rows)])
    counts = confusion.tolist()
    named = [[name, *row] for name, row in zip(class_names, counts, strict=True)]
    _write_csv(folder / CONFUSION, [["true \\ predicted", *class_names], *named])
    with whole_file(folder / PICTURE, "wb") as file:
        save_confusion(file, confusion.numpy(), class_names, title)
    write_json(folder / RECORD, record)


def _write_csv(path: Path, rows: list[list[Any]]) -> None:
    with whole_file(path, newline="") as file:
        csv.writer(file).writerows(rows)
