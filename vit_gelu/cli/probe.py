"""Try torch and what hangs on it, in a process of its own: an import that fails, crashes or hangs is a finding.

Run as a script, with one argument in JSON: ``root`` (folder of the data sets, or null), ``package`` (the
folder that holds ``vit_gelu``, or null: leave the data alone), ``compile`` (whether to try torch.compile).
Prints one line of JSON per step, so that what came before a crash is not lost.
"""

import json
import sys
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def look_at_torch() -> dict[str, Any]:
    """Version, build, GPUs, and whether a product of matrices can be computed on each."""
    import torch

    facts: dict[str, Any] = {
        "version": torch.__version__,
        "cuda_build": torch.version.cuda,
        "hip_build": torch.version.hip,
        "threads": torch.get_num_threads(),
        "mps": torch.backends.mps.is_available(),
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        facts["numpy"] = _error_of(lambda: torch.zeros(1).numpy())
        facts["cuda"] = torch.cuda.is_available()
        facts["gpus"] = [_look_at_gpu(i) for i in range(torch.cuda.device_count() if facts["cuda"] else 0)]
    facts["warnings"] = [" ".join(str(w.message).split()) for w in caught]
    return facts


def _look_at_gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    facts = {
        "name": properties.name,
        "memory": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
    }

    def product() -> None:
        a = torch.ones(64, 64, device=f"cuda:{index}")
        assert float((a @ a)[0, 0]) == 64
        facts["free"] = torch.cuda.mem_get_info(index)[0]

    facts["error"] = _error_of(product)
    return facts


def look_at_torchvision() -> dict[str, Any]:
    """Whether torchvision's compiled operators work with this torch."""
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    torchvision.ops.nms(boxes, torch.ones(1), 0.5)
    return {"version": torchvision.__version__}


def look_at_data(root: str | None) -> dict[str, Any]:
    """Which data sets are there, in which form, and whether they look whole."""
    from vit_gelu.data import default_root, find_cifar
    from vit_gelu.data.cifar_batches import CIFAR
    from vit_gelu.data.download import md5_of

    folder = default_root() if root is None else Path(root).expanduser()
    found: dict[str, Any] = {}
    for name, layout in CIFAR.items():
        path = find_cifar(name, folder)
        if path is None:
            continue
        problem = None
        if path.suffix == ".npz":
            problem = None if zipfile.is_zipfile(path) else "is truncated or not an array file"
        elif path.is_dir():
            missing = [f for f in (*layout.train, layout.test, layout.meta) if not (path / f).is_file()]
            problem = f"lacks {', '.join(missing)}" if missing else None
        elif md5_of(path) != layout.md5:
            problem = "is incomplete or not the official archive (wrong checksum)"
        found[name] = {"path": str(path), "problem": problem}
    return {"root": str(folder), "found": found, "names": list(CIFAR)}


def look_at_compile() -> dict[str, Any]:
    """Compile a function and compare its result with what it should be."""
    import torch

    seconds = {}
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        start = time.perf_counter()
        x = torch.arange(1000.0, device=device)
        compiled = torch.compile(lambda x: torch.sin(x) * 2 + x, fullgraph=True)
        torch.testing.assert_close(compiled(x), torch.sin(x) * 2 + x)
        seconds[device] = time.perf_counter() - start
    return {"seconds": seconds}


def _error_of(action: Callable[[], object]) -> str | None:
    """Run something that may fail in any way at all; the failure's one line, or None."""
    try:
        action()
    except (Exception, SystemExit) as error:  # an import may fail in any way; each is a finding
        lines = traceback.format_exception_only(error)
        return " ".join(lines[-1].split())[:300]
    return None


def main() -> None:
    """Take all looks that were asked for."""
    asked = json.loads(sys.argv[1])
    if asked["package"] is not None:
        sys.path.insert(0, asked["package"])
    looks: dict[str, Callable[[], dict[str, Any]]] = {
        "torch": look_at_torch,
        "torchvision": look_at_torchvision,
    }
    if asked["package"] is not None:
        looks["data"] = lambda: look_at_data(asked["root"])
    if asked["compile"]:
        looks["compile"] = look_at_compile
    for name, look in looks.items():
        facts: dict[str, Any] = {}
        error = _error_of(lambda look=look, facts=facts: facts.update(look()))  # type: ignore[misc]
        print(json.dumps({name: facts if error is None else {"error": error}}), flush=True)


if __name__ == "__main__":
    main()
