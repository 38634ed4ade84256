"""What makes two runs the same arm, and what the arm is called."""

import json
from collections.abc import Callable, Iterable
from typing import Any

from vit_gelu.ablation.records import Run


def arm_key(record: dict[str, Any]) -> tuple[str, str, str]:
    """What makes two runs the same arm: label, activation, and its options."""
    options = json.dumps(record.get("activation_kwargs") or {}, sort_keys=True)
    return str(record.get("arm") or ""), str(record.get("activation")), options


def arm_labels(records: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str], str]:
    """A name for every arm: its label, else the activation, with its options where the name alone is taken twice."""
    keys = list(dict.fromkeys(arm_key(r) for r in records))

    def options(key: tuple[str, str, str]) -> str:
        return ", ".join(f"{k}={v}" for k, v in json.loads(key[2]).items()) or "defaults"

    forms: tuple[Callable[[tuple[str, str, str]], str], ...] = (
        lambda k: k[0] or k[1].rsplit(".", 1)[-1],
        lambda k: k[0] or f"{k[1].rsplit('.', 1)[-1]} ({options(k)})",
        lambda k: f"{k[0] or k[1]} ({k[1] + ': ' if k[0] else ''}{options(k)})",
    )
    labels = {}
    for key in keys:
        for form in forms:
            labels[key] = form(key)
            if [form(k) for k in keys].count(labels[key]) == 1:
                break
    return labels


def own_label(run: Run) -> bool:
    """Whether the arm says that it is more than its activation, and so may have options of its own."""
    return says_more(run.record.get("arm") or "", run.record["activation"])


def says_more(label: str, activation: str) -> bool:
    """Whether an arm's label is not just its activation.

    >>> says_more("gelu narrow", "gelu"), says_more("Sine", "mine.Sine")
    (True, False)
    """
    return label not in ("", activation, activation.rsplit(".", 1)[-1])
