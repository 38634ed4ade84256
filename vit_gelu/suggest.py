"""How a wrong name is answered: what was asked, the rule, the nearest valid choices."""

import difflib
from collections.abc import Iterable

LESS = 0.1  # of the best one's likeness, which is at most 1


def nearest(name: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """The choices most like ``name``, best first, without those that are clearly less like it; empty: none is close.

    >>> nearest("glue", ["gelu", "relu", "silu"])[0]
    'gelu'
    >>> nearest("--model.pretraind", ["--model.pretrained", "--model.mlp_ratio"])
    ['--model.pretrained']
    """
    lower = {c.lower(): c for c in reversed(list(choices))}
    close = difflib.get_close_matches(name.lower(), lower, n=n, cutoff=0.6)
    likeness = [difflib.SequenceMatcher(None, match, name.lower()).ratio() for match in close]
    return [lower[m] for m, ratio in zip(close, likeness, strict=True) if ratio > likeness[0] - LESS]


def unknown(what: str, name: str, choices: Iterable[str], *, limit: int = 40) -> str:
    """The message for a name that is not one of the choices.

    >>> print(unknown("activation", "glue", ["gelu", "relu", "tanh"]))
    unknown activation 'glue'. Did you mean 'gelu'? Choices: gelu, relu, tanh
    """
    choices = list(choices)
    close = nearest(name, choices)
    hint = f" Did you mean {' or '.join(repr(c) for c in close[:2])}?" if close else ""
    listed = ", ".join(choices[:limit]) + (", …" if len(choices) > limit else "")
    return f"unknown {what} {name!r}.{hint} Choices: {listed}"
