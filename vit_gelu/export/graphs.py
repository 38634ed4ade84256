"""The network as a graph of operations, with any number of images at a time: ONNX, and torch.export."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_gelu.export.trained import Exported, Trained
from vit_gelu.whole_file import naming, whole_file

ONNX_FILE, PT2_FILE = "model.onnx", "model.pt2"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18  # what torch's exporter writes without conversion


def check_onnx_packages() -> None:
    """Raise ValueError where a package that ONNX needs is not installed."""
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(f"--format onnx: needs {', '.join(missing)}; python -m pip install 'vit_gelu[onnx]'")


def example(trained: Trained, preprocessing: bool) -> Tensor:
    """Two images of zeros, as the graph takes them: the number of images is left open, the rest is fixed."""
    return torch.zeros(2, *trained.image_shape, dtype=torch.uint8 if preprocessing else torch.float32)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters tell of their progress, their own deprecations and their insides; errors still come as exceptions."""
    before, nowhere = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def trace(trained: Trained, *, preprocessing: bool) -> torch.export.ExportedProgram:
    """The network as torch.export sees it."""
    batch = torch.export.Dim("batch")
    with torch.no_grad(), _quiet():
        return torch.export.export(
            Exported(trained, preprocessing=preprocessing),
            (example(trained, preprocessing),),
            dynamic_shapes=({0: batch},),
        )


def write_torch_export(trained: Trained, folder: Path, *, preprocessing: bool) -> dict[str, Any]:
    """Write ``model.pt2``; returns what to note about it."""
    program = trace(trained, preprocessing=preprocessing)
    content = io.BytesIO()  # torch aborts the process where its file cannot be written
    with _quiet():
        torch.export.save(program, content)
    with whole_file(folder / PT2_FILE, "wb") as file:
        file.write(content.getbuffer())
    return {"torch": torch.__version__}


def read_torch_export(folder: Path) -> Callable[[Tensor], Tensor]:
    """Images to logits, from the file alone."""
    with _quiet():
        return torch.export.load(folder / PT2_FILE).module()


def write_onnx(trained: Trained, folder: Path, *, preprocessing: bool) -> dict[str, Any]:
    """Write ``model.onnx`` (input ``images``, output ``logits``); returns what to note about it.

    Weights beyond the 2 GB that one file can hold go beside it, as ``model.onnx.data``.
    """
    import onnx

    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            Exported(trained, preprocessing=preprocessing),
            (example(trained, preprocessing),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        with naming(folder / ONNX_FILE):
            program.save(str(folder / ONNX_FILE))
    model = onnx.load(str(folder / ONNX_FILE), load_external_data=False)
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    onnx.checker.check_model(str(folder / ONNX_FILE))
    return {
        "opset": opset,
        "ir_version": model.ir_version,
        "onnx": onnx.__version__,
        "torch": torch.__version__,
    }


def read_onnx(folder: Path) -> Callable[[Tensor], Tensor]:
    """Images to logits through onnxruntime on the CPU, from the file alone."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        str(folder / ONNX_FILE), options, providers=["CPUExecutionProvider"]
    )

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.contiguous().numpy()})[0])

    return run
