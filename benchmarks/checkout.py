"""Import first: makes ``vit_gelu`` the one beside these scripts, not another that happens to be installed."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

sys.path.insert(0, str(ROOT))
# Processes that a script starts must measure the same code.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
