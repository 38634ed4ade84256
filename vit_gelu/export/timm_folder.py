"""A folder that stock timm loads: ``timm.create_model("local-dir:FOLDER", pretrained=True)``, or a hub repository."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from vit_gelu.export.model_card import model_card
from vit_gelu.export.state_dict import tensors_of
from vit_gelu.export.timm_form import TimmForm
from vit_gelu.export.trained import Trained
from vit_gelu.export.verification import ExportFailed
from vit_gelu.training.record import write_json
from vit_gelu.whole_file import whole_file, write_text


def config_of(trained: Trained, form: TimmForm) -> dict[str, Any]:
    """The content of ``config.json``."""
    net = trained.net
    features = net.config.get("embed_dim") or getattr(getattr(net, "timm_model", None), "num_features", None)
    pretrained_cfg = {
        **form.pretrained_cfg,
        "num_classes": net.config["num_classes"],
        "input_size": list(trained.image_shape),
        "fixed_input_size": "img_size" in form.model_args,
        "pool_size": None,
        "interpolation": "bilinear",  # as our own image folders are resized
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": list(trained.mean),
        "std": list(trained.std),
        "label_names": trained.class_names,
    }
    config = {
        "architecture": form.architecture,
        "num_classes": net.config["num_classes"],
        "num_features": features,
        "pretrained_cfg": pretrained_cfg,
        "model_args": form.model_args,
    }
    if "global_pool" in form.model_args:
        config["global_pool"] = form.model_args["global_pool"]
    return config


def write_timm(trained: Trained, folder: Path, form: TimmForm) -> dict[str, Any]:
    """Write ``config.json``, ``model.safetensors`` and ``README.md``; returns what to note."""
    import timm

    # A position embedding that is fixed is a buffer here and a parameter there: of one name and shape.
    with whole_file(folder / "model.safetensors", "wb") as file:
        file.write(save(tensors_of(trained), metadata={"format": "pt"}))
    write_json(folder / "config.json", config_of(trained, form))
    write_text(folder / "README.md", model_card(trained, form.architecture))
    return {"timm": timm.__version__, "architecture": form.architecture}


def read_timm(folder: Path, trained: Trained) -> Callable[[Tensor], Tensor]:
    """Images to logits, through stock timm from the files alone.

    Raises:
        ExportFailed: timm does not load it, or counts other parameters.
    """
    import timm

    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:  # whatever timm raises
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportFailed(f"timm {timm.__version__} does not load it: {lines[0][:200]}") from None
    own = {name: tuple(value.shape) for name, value in trained.net.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if own != theirs:
        different = sorted(own.items() ^ theirs.items())[:3]
        raise ExportFailed(f"timm's model has other parameters: {different}")
    return model
