"""``vit-gelu predict``: the most likely classes of image files."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_gelu.cli.arguments import Arguments, at_least, one_of, wants_help
from vit_gelu.cli.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_TOP_K = 5
# Up to here each image has a table of its own; more of them have a line each.
MOST_TABLES = 3

HELP = """usage: vit-gelu predict RUN IMAGES ... [OPTIONS]

The most likely classes of images, with their probabilities. RUN is a run folder or a checkpoint
(.ckpt); IMAGES are files, and folders that are searched to the bottom.

options:
  --top_k N                how many classes per image (default: 5)
  --json                   one JSON document in place of the tables (fractions, not per cent)
  --checkpoint last|best   which weights of a run folder (default: last)
  --device auto|cpu|cuda   default: a GPU where there is one
  --batch_size N           images at a time (default: 64)

Images are resized and centre cropped to the size of the network, and made grey where it was trained
on grey images. If one cannot be read, nothing is predicted.

examples:
  vit-gelu predict runs/cifar10-vit_tiny-gelu-seed0 cat.jpg
  vit-gelu predict runs/cifar10-vit_tiny-gelu-seed0 ~/pictures --top_k 1 --json
"""


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    if wants_help(argv):
        print(HELP, end="")
        return 0
    options = _parser().parse_args(argv)

    from vit_gelu.cli.device import choose_device
    from vit_gelu.cli.evaluation_data import check_head
    from vit_gelu.cli.image_files import find_images
    from vit_gelu.training.checkpoint import find_checkpoint, load_network

    device = choose_device(options.device)
    files, others = find_images(options.images)
    run = Path(options.run).expanduser()
    if options.checkpoint and run.is_file():
        raise UsageError(f"--checkpoint {options.checkpoint}: only for a run folder; {run} is a file")
    checkpoint = find_checkpoint(run, options.checkpoint or "last")
    net, card = load_network(checkpoint)
    check_head(card, options.run)
    names = card["data"]["class_names"]
    if options.top_k is not None and options.top_k > len(names):
        raise UsageError(f"--top_k {options.top_k}: the network knows {len(names)} classes")
    top_k = min(DEFAULT_TOP_K, len(names)) if options.top_k is None else options.top_k
    images = predict(net, card, files, top_k=top_k, batch_size=options.batch_size, device=device)
    if others:
        shown = ", ".join(str(p) for p in others[:3]) + (", …" if len(others) > 3 else "")
        print(f"note: left out, not images by their suffix ({len(others)}): {shown}", file=sys.stderr)
    if options.json:
        document = {"checkpoint": str(checkpoint), "top_k": top_k, "images": images}
        print(json.dumps(document, indent=1, allow_nan=False))
    else:
        from rich.console import Console

        print_predictions(Console(), images)
    return 0


def _parser() -> Arguments:
    parser = Arguments("predict")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("images", metavar="IMAGES", nargs="+")
    parser.add_argument("--top_k", type=at_least(1))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--checkpoint", type=one_of("checkpoint", ("last", "best")))
    parser.add_argument("--device", type=one_of("device", ("auto", "cpu", "cuda")), default="auto")
    parser.add_argument("--batch_size", type=at_least(1), default=64)
    return parser


def predict(
    net: Any, card: dict[str, Any], files: list[Path], *, top_k: int, batch_size: int, device: Any
) -> list[dict[str, Any]]:
    """The likeliest classes of image files.

    Args:
        net, card: see ``load_network``.
        files: of the images.
        top_k: how many classes per image.
        batch_size: images per forward pass.
        device: where to run, a ``torch.device``.

    Returns:
        Per file, in their order: ``file`` and ``top``, the classes, likeliest first, each with ``class``,
        ``label`` and ``probability`` (softmax of the logits, a fraction).

    Raises:
        UsageError: images that cannot be read; names the first ones.
    """
    import torch

    from vit_gelu.cli.image_files import decoded_batches
    from vit_gelu.data.loader import Normalize

    data = card["data"]
    names = data["class_names"]
    # Files are brought to the size that the training images had, and enlarged as those were.
    size, upsampled_from = tuple(data["image_size"]), data.get("upsampled_from")
    normalize = Normalize(tuple(data["mean"]), tuple(data["std"]), device, size if upsampled_from else None)
    net = net.to(device).eval()
    results: list[dict[str, Any]] = []
    with torch.inference_mode():
        own = tuple(upsampled_from or size)
        for batch in decoded_batches(files, batch_size, own, data["in_channels"]):
            logits = net(normalize(batch.to(device)))
            best = logits.double().softmax(dim=1).topk(top_k, dim=1)
            for chances, labels in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                top = [
                    {"class": names[label], "label": label, "probability": chance}
                    for label, chance in zip(labels, chances, strict=True)
                ]
                results.append({"file": str(files[len(results)]), "top": top})
    return results


def print_predictions(console: "Console", images: list[dict[str, Any]]) -> None:
    """Print a table for each of a few images, or one table for many.

    Args:
        console: where to.
        images: see ``predict``.
    """
    from rich.markup import escape
    from rich.table import Table

    if len(images) <= MOST_TABLES:
        for image in images:
            console.print(image["file"], markup=False, highlight=False, soft_wrap=True)
            table = Table(box=None, show_header=False)
            table.add_column(justify="right")
            table.add_column()
            for row in image["top"]:
                table.add_row(f"{100 * row['probability']:.2f} %", escape(row["class"]))
            console.print(table)
        return
    table = Table("image", "class", box=None, pad_edge=False)
    table.add_column("%", justify="right")
    if len(images[0]["top"]) > 1:
        table.add_column("then")
    for image in images:
        first, *rest = image["top"]
        then = ", ".join(f"{row['class']} {100 * row['probability']:.1f}" for row in rest)
        cells = [image["file"], first["class"], f"{100 * first['probability']:.1f}", then]
        table.add_row(*(escape(cell) for cell in cells[: len(table.columns)]))
    console.print(table)
