"""What a masked autoencoder makes of a few validation images, as a picture."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vit_gelu.data.arrays import spread
from vit_gelu.data.batch import pixels_of
from vit_gelu.data.loader import EvalLoader
from vit_gelu.training.masked import MaskedModule
from vit_gelu.whole_file import whole_file

SHOWN = 8
GREY = 0.6  # of what is hidden


def save_reconstruction(path: Path, module: MaskedModule, data: Any) -> None:
    """Write the picture as PNG, whole or not at all.

    The images are spread evenly over the validation split, so that they are of several classes even where a data
    set is sorted by class; their masks are those of the validation.

    Args:
        path: the file.
        module: trained.
        data: ``ImageData`` that it was trained on.
    """
    indices = spread(data.val_n, SHOWN)
    device = next(module.network.parameters()).device
    part = data.source.val.take(indices)
    (batch,) = EvalLoader(part, batch_size=SHOWN, mean=data.mean, std=data.std, device=device)
    visible = module.validation_visible(indices.to(device))
    training, precision = module.training, module.trainer.precision_plugin
    module.eval()
    with precision.forward_context():  # what computes attention may know no other precision than the run's
        mask, drawn = module.autoencoder.reconstruct(precision.convert_input(batch).images, visible)
    module.train(training)

    seen, made = (pixels_of(images, data.mean, data.std) for images in (batch.images, drawn))
    shown = torch.where(mask.cpu(), torch.tensor(GREY), seen)
    rows = [("original", seen), ("shown", shown), ("drawn", made)]
    figure = reconstruction_figure([(name, row.numpy()) for name, row in rows], _title(module))
    with whole_file(path, "wb") as file:
        figure.savefig(file, format="png")


def _title(module: MaskedModule) -> str:
    hidden = module.num_patches - module.visible
    title = f"validation images, {hidden} of {module.num_patches} patches hidden"
    # Said, since it is more than the network knows.
    return title + (
        "; drawn patches have the brightness and contrast of the true ones" if module.norm_pixels else ""
    )


def reconstruction_figure(rows: list[tuple[str, "np.ndarray[Any, Any]"]], title: str) -> Figure:
    """Rows of images, one under the other.

    Args:
        rows: name and float images 0-1 of shape (n, c, h, w), equal n.
        title: above.
    """
    count, _, height, width = rows[0][1].shape
    cell_height = 1.1 * height / width
    size = (1.1 * count + 0.9, cell_height * len(rows) + 0.5)
    figure = Figure(figsize=size, dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        len(rows), count, squeeze=False,
        gridspec_kw={"left": 0.8 / size[0], "right": 0.99, "top": 1 - 0.4 / size[1], "bottom": 0.05 / size[1],
                     "wspace": 0.06, "hspace": 0.06},
    )  # fmt: skip
    for i, (name, images) in enumerate(rows):
        axes[i][0].text(-0.08, 0.5, name, transform=axes[i][0].transAxes, ha="right", va="center", fontsize=9)
        for j, image in enumerate(images):
            axes[i][j].imshow(
                rearrange(image, "c h w -> h w c"), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
            )
            axes[i][j].set_axis_off()
    figure.suptitle(title, fontsize=9, x=0.01, ha="left", y=1 - 0.12 / size[1], va="top")
    return figure
