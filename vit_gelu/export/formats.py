"""One export from beginning to end: checked, written, reloaded, compared, and only then there."""

from pathlib import Path
from typing import Any

from vit_gelu import __version__
from vit_gelu.export import graphs
from vit_gelu.export.folder import MARKER, refuse_to_overwrite, whole_folder
from vit_gelu.export.state_dict import PICKLED, WEIGHTS, read_state_dict, write_state_dict
from vit_gelu.export.timm_folder import read_timm, write_timm
from vit_gelu.export.timm_form import TimmForm, timm_form
from vit_gelu.export.trained import Trained
from vit_gelu.export.verification import CheckImages, ExportFailed, Verification, check_images, verify
from vit_gelu.training.record import write_json

FORMATS = ("timm", "state_dict", "onnx", "torch_export")
GRAPHS = ("onnx", "torch_export")
SCHEMA = 1
# Of the largest logit, or 1. Another runtime adds up in another order.
TOLERANCES = {"timm": 1e-5, "state_dict": 1e-6, "onnx": 1e-4, "torch_export": 1e-5}


def check_format(name: str, *, preprocessing: bool) -> None:
    """Refuse what can be refused before anything is loaded.

    Raises:
        ValueError: preprocessing for a format without a graph, or packages that are missing.
    """
    if preprocessing and name not in GRAPHS:
        raise ValueError(
            f"--with_preprocessing: not with --format {name}, which holds weights, no operations; "
            f"with {' or '.join(GRAPHS)}"
        )
    if name == "onnx":
        graphs.check_onnx_packages()


def export(
    trained: Trained,
    name: str,
    out: Path,
    *,
    preprocessing: bool = False,
    overwrite: bool = False,
    root: str | None = None,
) -> Verification:
    """Write a network in a format, reload it from the files and compare its logits with the run's.

    Args:
        trained: see ``read_trained``.
        name: one of ``FORMATS``.
        out: the folder, which appears whole or not at all.
        preprocessing: the graph takes uint8 pixels.
        overwrite: replace an export that is there.
        root: where data sets lie, for the images to compare on.

    Returns:
        How close the reloaded network came; it stands in the folder's ``export.json`` too.

    Raises:
        ValueError: the format cannot hold this network, or the folder is taken. Nothing was written.
        ExportFailed: what was written is not the network. It is deleted.
        OSError: the folder cannot be written.
    """
    check_format(name, preprocessing=preprocessing)
    refuse_to_overwrite(out, overwrite)
    form = timm_form(trained) if name == "timm" else None
    images = check_images(trained, root)
    with whole_folder(out) as folder:
        noted = _write(trained, name, folder, form, preprocessing)
        try:
            verified = _verify(trained, name, folder, images, preprocessing)
        except (ExportFailed, OSError):
            raise
        except Exception as error:  # of a runtime that cannot read or run what its exporter wrote
            raise ExportFailed(f"it cannot be read again: {_line(error)}") from error
        write_json(folder / MARKER, _record(trained, name, preprocessing, noted, verified))
    return verified


def _write(
    trained: Trained, name: str, folder: Path, form: TimmForm | None, preprocessing: bool
) -> dict[str, Any]:
    if form is not None:
        return write_timm(trained, folder, form)
    if name == "state_dict":
        write_state_dict(trained, folder)
        return {}
    write = graphs.write_onnx if name == "onnx" else graphs.write_torch_export
    try:
        return write(trained, folder, preprocessing=preprocessing)
    except OSError:
        raise
    except Exception as error:  # the tracer, the exporter and the compiler each have their own
        raise ExportFailed(
            f"{trained.activation} in this network cannot be turned into a graph: {_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def _verify(
    trained: Trained, name: str, folder: Path, images: CheckImages, preprocessing: bool
) -> Verification:
    if name == "timm":
        readers = [read_timm(folder, trained)]
    elif name == "state_dict":
        readers = [read_state_dict(folder, weights) for weights in (PICKLED, WEIGHTS)]
    elif name == "onnx":
        readers = [graphs.read_onnx(folder)]
    else:
        readers = [graphs.read_torch_export(folder)]
    done = [
        verify(reader, trained, images, raw=preprocessing, relative=TOLERANCES[name]) for reader in readers
    ]
    return max(done, key=lambda verification: verification.max_abs)


def _record(
    trained: Trained, name: str, preprocessing: bool, noted: dict[str, Any], verified: Verification
) -> dict[str, Any]:
    data = trained.card["data"]
    channels, height, width = trained.image_shape
    return {
        "schema": SCHEMA,
        "format": name,
        "vit_gelu": __version__,
        **noted,
        "activation": trained.activation,
        "input": {
            "shape": ["batch", channels, height, width],
            "dtype": "uint8" if preprocessing else "float32",
            "normalised": not preprocessing,
            "mean": list(trained.mean),
            "std": list(trained.std),
        },
        "class_names": trained.class_names,
        "checkpoint": {
            "name": trained.checkpoint.name,
            **{k: trained.card[k] for k in ("epoch", "step", "seed")},
        },
        "dataset": {"name": data["name"], "fingerprint": data["fingerprint"]},
        "network": trained.net.config,
        "notes": trained.notes,
        "verified": verified.record(),
    }
