"""Is what was written the network of the run? Its logits are compared on images, from the files that users will get."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vit_gelu.data import Source, load_source
from vit_gelu.data.batch import Normalize
from vit_gelu.data.fetch import build_fetcher
from vit_gelu.export.trained import Trained
from vit_gelu.models.swap import logits_of

IMAGES = 64


class ExportFailed(RuntimeError):
    """It could not be written, or what was written, read again, is not the network; nothing is kept."""


@dataclass(frozen=True, eq=False)
class CheckImages:
    """Images to compare on.

    Attributes:
        pixels: uint8, (n, c, h, w).
        normalised: float32, the same as the network takes them.
        what: where they are from, for people.
    """

    pixels: Tensor
    normalised: Tensor
    what: str


@dataclass(frozen=True)
class Verification:
    """How close the logits came.

    Attributes:
        max_abs: largest difference of any logit.
        tolerance: that was allowed, absolute.
        n: images.
        images: what they were.
        batch_sizes: that the images were given in.
    """

    max_abs: float
    tolerance: float
    n: int
    images: str
    batch_sizes: tuple[int, ...]

    @property
    def text(self) -> str:
        return (
            f"reloaded and compared on {self.n} images ({self.images}), in batches of "
            f"{', '.join(map(str, self.batch_sizes))}: logits differ by {self.max_abs:.1e} at most "
            f"(tolerance {self.tolerance:.1e})"
        )

    def record(self) -> dict[str, Any]:
        return {**vars(self), "batch_sizes": list(self.batch_sizes)}


def check_images(trained: Trained, root: str | None = None) -> CheckImages:
    """Validation images of the run's data set; noise where it is not here, or not the same.

    Args:
        trained: says which data set.
        root: where data sets lie; None: where the run had them, else the default folder.
    """
    source = _source(trained, root)
    if isinstance(source, str):
        generator = torch.Generator().manual_seed(0)
        shape = (IMAGES, *trained.image_shape)
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        what = f"noise, because {source}"
    else:
        images = source.val.take(torch.arange(min(IMAGES, len(source.val))))
        indices = torch.arange(len(images))
        device = torch.device("cpu")
        pixels = torch.cat(list(build_fetcher(images, device, 0)([indices], [indices])))
        what = f"{source.name}, validation"
        height_and_width = trained.image_shape[1:]
        if trained.card["data"].get("upsampled_from"):
            pixels = Normalize.enlarge(pixels, height_and_width).round_().to(torch.uint8)
            what += f", enlarged to {height_and_width[0]}x{height_and_width[1]}"
    return CheckImages(pixels, Normalize(trained.mean, trained.std)(pixels), what)


def _source(trained: Trained, root: str | None) -> Source | str:
    """The data set of the training, or why there is none."""
    data, options = trained.card["data"], trained.options.get("data") or {}
    name = options.get("name") or data["name"]
    try:
        source = load_source(
            name,
            options.get("root") if root is None else root,
            image_size=tuple(data.get("upsampled_from") or data["image_size"]),
            download=False,
            **({"val_fraction": options["val_fraction"]} if "val_fraction" in options else {}),
        )
    except (OSError, ValueError):
        return f"{data['name']} is not here"
    if source.fingerprint != data["fingerprint"]:
        return f"{data['name']} here is not that of the training"
    return source


def verify(
    reloaded: Callable[[Tensor], Tensor], trained: Trained, images: CheckImages, *, raw: bool, relative: float
) -> Verification:
    """Compare a reloaded network with that of the run.

    Args:
        reloaded: images to logits; the images are given in one batch, then one by one and by threes.
        trained: the run's network.
        images: to compare on.
        raw: give ``reloaded`` uint8 pixels.
        relative: tolerance, times the largest logit or 1.

    Raises:
        ExportFailed: logits differ by more.
    """
    largest = float(logits_of(trained.net, images.normalised).abs().max())
    given = images.pixels if raw else images.normalised
    tolerance = relative * max(1.0, largest)
    worst, sizes = 0.0, []
    for size, n in ((len(given), len(given)), (1, 2), (3, 6)):
        # In the same batches: a matrix product of another shape adds up in another order.
        expected = logits_of(trained.net, images.normalised[:n], batch_size=size).double()
        with torch.no_grad():
            got = torch.cat([reloaded(batch) for batch in given[:n].split(size)]).double()
        if got.shape != expected.shape:
            raise ExportFailed(f"reloaded, it gives logits of shape {tuple(got.shape)} for {n} images")
        worst = float(
            torch.stack([(got - expected).abs().max(), torch.tensor(worst, dtype=torch.float64)]).max()
        )  # NaN stays NaN
        sizes.append(size)
        if not worst <= tolerance:
            raise ExportFailed(
                f"reloaded, its logits differ by {worst:.2e} from the run's (tolerance {tolerance:.1e}), "
                f"in batches of {size} ({images.what})"
            )
    return Verification(worst, tolerance, len(given), images.what, tuple(sizes))
