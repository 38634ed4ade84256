"""``vit-gelu analyze``: what the activations and the attention of a trained network do on images."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_gelu.cli.arguments import Arguments, add_pass_options, at_least, one_of, wants_help
from vit_gelu.cli.errors import UsageError
from vit_gelu.cli.opened_pretrained import is_run, open_pretrained

if TYPE_CHECKING:
    import torch

DEFAULT_IMAGES = 1024

HELP = """usage: vit-gelu analyze RUN [RUN ...] [OPTIONS]

What a trained network does with images: what goes into its activations and where on their
curve it lies, how far its attention reaches and from where, what its position embeddings and
patch filters have learned.
RUN is a run folder or a checkpoint (.ckpt), or what --model.pretrained takes: a timm name with
tag, hf-hub:OWNER/NAME, a .safetensors, .pth or .npz file, a timm folder. Of several, each is
looked at by itself; then a table has a row for each activation, mean and deviation over its runs.

which images:
  --data.name NAME         cifar10, cifar100, digits, an array file (.npz) or an image folder
                           (default: the data set of the training)
  --data.root DIR          where data sets are looked for and kept
  --split val|test|train   which part of it (default: val)
  --images N               how many, evenly spread over the split (default: 1024)
  --checkpoint last|best   which weights of a run folder (default: last)
  --resize                 resize images of another size to that of the network

how:
  --device auto|cpu|cuda   default: a GPU where there is one
  --precision P            32-true, bf16-mixed or 16-mixed (default: that of the run)
  --batch_size N           images at a time (default: that of the run, else 512)
  --data.num_workers N     processes that decode image files (default: 0)

result:
  --out DIR                folder for analysis.json, activations.csv, attention.csv, arrays.npz and
                           the pictures (default: analysis-DATA-SPLIT-CHECKPOINT in the run);
                           of several runs, for a folder each
  --overwrite              replace an analysis that is there
  --json                   print analysis.json in place of the tables (fractions, not per cent)

examples:
  vit-gelu analyze runs/digits-vit_tiny-gelu-seed0
  vit-gelu analyze runs/cifar10-vit_tiny-relu-seed0 --images 5000 --checkpoint best
  vit-gelu analyze runs/ablation-cifar10_cpu/runs/*
  vit-gelu analyze vit_base_patch16_224.augreg_in21k --data.name cifar10
"""


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    if wants_help(argv):
        print(HELP, end="")
        return 0
    options = _parser().parse_args(argv)

    from rich.console import Console

    from vit_gelu.analysis.together import print_together
    from vit_gelu.cli.device import choose_device
    from vit_gelu.training.record import code_commit

    code_commit()
    device = choose_device(options.device)
    asked = [argparse.Namespace(**vars(options), run=run) for run in dict.fromkeys(options.runs)]
    if len(asked) > 1:
        if options.out is not None:
            for one in asked:
                one.out = str(Path(options.out) / _name(one.run))
        taken: dict[Path, str] = {}
        for one in asked:  # before hours have gone into the others
            _, out = _open(one)
            if out in taken:
                raise UsageError(f"{one.run} and {taken[out]}: both would go to {out}; take them one by one")
            taken[out] = one.run
    records = []
    for one in asked:
        records.append(_analyze(one, device))
        if len(asked) > 1 and not options.json:
            print()
    if options.json:
        print(json.dumps(records[0] if len(asked) == 1 else records, indent=1, allow_nan=False))
    elif len(asked) > 1:
        print_together(Console(), records)
    return 0


def _open(options: Any) -> tuple[Any, Path]:
    """The network that ``options.run`` names, and the folder for what will be found.

    Raises:
        UsageError: there is an analysis in that folder, or an option that does not fit.
        ValueError: the network cannot be read.
    """
    from vit_gelu.analysis.files import FILES
    from vit_gelu.cli.evaluation_files import refuse_to_overwrite
    from vit_gelu.cli.opened_run import open_run

    subject: Any
    if is_run(options.run):
        subject = open_run(options.run, options.checkpoint)
        data = Path(options.data_name or subject.card["data"]["name"]).expanduser().resolve().stem
        out = subject.folder / f"analysis-{data}-{options.split}-{subject.checkpoint.stem}"
    else:
        subject = open_pretrained(options, "the network of {} is to be looked at")
        out = Path(subject.folder_name("analysis", options.split))
    out = out if options.out is None else Path(options.out).expanduser()
    refuse_to_overwrite(out, options.overwrite, FILES, "an analysis")
    return subject, out


def _analyze(options: Any, device: "torch.device") -> dict[str, Any]:
    """Look at one network, write what is found, and show it unless JSON is asked for; returns the record."""
    from rich.console import Console

    from vit_gelu.analysis.files import SCHEMA, record_of, write_analysis
    from vit_gelu.analysis.observe import analyse
    from vit_gelu.analysis.plots import Title
    from vit_gelu.analysis.screen import print_analysis
    from vit_gelu.training.record import software_and_device

    subject, out = _open(options)
    batch_size = options.batch_size or subject.batch_size
    precision = options.precision or subject.precision
    if is_run(options.run):
        split = subject.split(
            options.data_name, options.data_root, options.split, resize=options.resize, same_classes=False
        )
        if split.note and options.data_name is None:
            print(f"warning: {split.note}", file=sys.stderr)
        subject.use_its_attention(precision, batch_size, device)
    else:
        split = subject.split(options.split)
    started = time.perf_counter()
    analysis = analyse(
        subject.net,
        split.images,
        most=options.images,
        **subject.as_trained,
        batch_size=batch_size,
        device=device,
        precision=precision,
        num_workers=options.num_workers,
    )
    record = {
        "schema": SCHEMA,
        **subject.record,
        "dataset": {
            "name": split.source.name,
            "split": split.name,
            "n": len(split.images),
            "fingerprint": split.source.fingerprint,
        },
        **record_of(analysis),
        "precision": precision,
        "batch_size": batch_size,
        "seconds": time.perf_counter() - started,
        "env": software_and_device(device),
    }
    images = f"{analysis.n:,} of {len(split.images):,} {split.name} images of {split.source.name}"
    written = write_analysis(out, record, analysis, Title(_name(options.run), images))
    if not options.json:
        print(f"{options.run}: {images}; {precision} on {record['env']['device']}")
        print(*(f"{change}\n" for change in record.get("changes", ())), sep="", end="")
        print_analysis(Console(), analysis)
        print(f"\nfiles in {out}: {', '.join(written)}")
    return record


def _name(run: str) -> str:
    """Of a network, for a folder and a title."""
    path = Path(run).expanduser()
    return path.resolve().name if path.exists() else run.replace("/", "-")


def _parser() -> Arguments:
    parser = Arguments("analyze")
    add_pass_options(parser, several=True)
    parser.add_argument("--split", type=one_of("split", ("val", "test", "train")), default="val")
    parser.add_argument("--images", type=at_least(1), default=DEFAULT_IMAGES)
    return parser
