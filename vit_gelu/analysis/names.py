"""Names of modules, for tables and pictures."""

import re
from collections.abc import Sequence


def short_names(names: Sequence[str]) -> list[str]:
    """``block 3`` for ``blocks.3.mlp.act``, where that says it all.

    >>> short_names(["blocks.0.mlp.act", "blocks.1.mlp.act"]), short_names(["stages.0.act"])
    (['block 0', 'block 1'], ['stages.0.act'])
    """
    matches = [re.fullmatch(r"blocks\.(\d+)\.mlp\.act", name) for name in names]
    if not all(matches):
        return list(names)
    return [f"block {match[1]}" for match in matches if match]
