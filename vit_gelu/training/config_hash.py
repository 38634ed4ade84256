"""The hash that ties a record to the options of its run; needs no torch, so that reports can check it."""

import hashlib
import json
from typing import Any

# Options that say where, with what seed and under what name a run happens, not what it is.
NOT_IN_HASH = (
    "seed_everything",
    "out",
    "resume",
    "ckpt_path",
    "loggers",
    "checkpoint_minutes",
    "config",
    "arm",
    "tuned",
)


def config_hash(config: dict[str, Any]) -> str:
    """Sixteen hex digits that two runs share exactly when they differ in nothing but the seed and the place."""
    kept = {k: v for k, v in config.items() if k not in NOT_IN_HASH}
    canonical = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
