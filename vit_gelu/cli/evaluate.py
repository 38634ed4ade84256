"""``vit-gelu evaluate``: accuracy, per class and confusion, of a run on a data set; or a probe of its features."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_gelu.cli.arguments import Arguments, add_pass_options, at_least, one_of, wants_help
from vit_gelu.cli.errors import UsageError
from vit_gelu.cli.opened_pretrained import is_run
from vit_gelu.cli.pretrained_probe import probe_pretrained

if TYPE_CHECKING:
    from vit_gelu.cli.evaluation_data import Split
    from vit_gelu.cli.opened_run import OpenedRun

PROBES = ("linear", "fewshot", "knn")

HELP = """usage: vit-gelu evaluate RUN [OPTIONS]

Accuracy of a trained network on a data set: in all, per class, and what it takes for what; or,
with --probe, how much its frozen features say about the classes of any data set.
RUN is a run folder or a checkpoint (.ckpt); with --probe also what --model.pretrained takes:
a timm name with tag, hf-hub:OWNER/NAME, a .safetensors, .pth or .npz file, a timm folder.

what is evaluated:
  --data.name NAME         cifar10, cifar100, digits, an array file (.npz) or an image folder, with
                           the network's classes or a probe (default: the data set of the training)
  --data.root DIR          where data sets are looked for and kept
  --split test|val|train   which part of it (default: test)
  --checkpoint last|best   which weights of a run folder (default: last)
  --resize                 resize images of another size to that of the network

probes (the head is left out; learn from the train images; judged by --split test or val):
  --probe linear           logistic regression, its regularisation chosen on val, never on test
  --probe fewshot          least squares from a few images per class, the ViT paper's; five draws
  --probe knn              a vote of the nearest images
  --shots N ...            images per class, of fewshot (default: 10)
  --neighbours N           images that vote, of knn (default: 20)

how:
  --device auto|cpu|cuda   default: a GPU where there is one
  --precision P            32-true, bf16-mixed or 16-mixed (default: that of the run)
  --batch_size N           images at a time (default: that of the run, else 512)
  --data.num_workers N     processes that decode image files (default: 0)

result:
  --out DIR                folder for per_class.csv, confusion.csv, confusion.png and
                           evaluation.json (default: evaluation-DATA-SPLIT-CHECKPOINT in the run);
                           of a probe, for probe.json (default: ...-PROBE)
  --overwrite              replace an evaluation that is there
  --json                   print the .json file in place of the tables (fractions, not per cent)

examples:
  vit-gelu evaluate runs/digits-vit_tiny-gelu-seed0
  vit-gelu evaluate last.ckpt --data.name ~/data/cifar10_blurred.npz --out blurred --json
  vit-gelu evaluate runs/cifar100-masked-vit_tiny-gelu-seed0 --probe linear --data.name cifar10
  vit-gelu evaluate vit_base_patch16_224.augreg_in21k --probe fewshot --data.name cifar10
"""


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    if wants_help(argv):
        print(HELP, end="")
        return 0
    options = _parser().parse_args(argv)
    _check_probe(options)
    if options.probe is not None and not is_run(options.run):
        return probe_pretrained(options)

    from rich.console import Console

    from vit_gelu.cli.counting import count
    from vit_gelu.cli.device import choose_device
    from vit_gelu.cli.evaluation_data import check_head
    from vit_gelu.cli.evaluation_files import (
        FILES,
        PROBE,
        class_rows,
        refuse_to_overwrite,
        write_evaluation,
    )
    from vit_gelu.cli.evaluation_table import print_classes
    from vit_gelu.cli.opened_run import open_run
    from vit_gelu.training.record import software_and_device

    device = choose_device(options.device)
    try:
        run = open_run(options.run, options.checkpoint)
    except UsageError:
        raise
    except ValueError as error:
        if is_run(options.run):
            raise
        others = "what the features of others' checkpoints are worth: --probe linear, fewshot or knn"
        raise UsageError(f"{error}; {others}") from None
    net, card, checkpoint = run.net, run.card, run.checkpoint
    if options.probe is None:
        check_head(card, options.run)
    out = _out(options, run.folder, checkpoint, card["data"]["name"])
    if options.probe is None:
        refuse_to_overwrite(out, options.overwrite, FILES)
    else:
        refuse_to_overwrite(out, options.overwrite, (PROBE,), "a probe")
    precision = options.precision or run.precision
    batch_size = options.batch_size or run.batch_size
    split = run.split(
        options.data_name,
        options.data_root,
        options.split,
        resize=options.resize,
        same_classes=options.probe is None,
    )
    # A probe is there for other data sets as well; that its own has changed is news.
    if split.note and (options.probe is None or options.data_name is None):
        print(f"warning: {split.note}", file=sys.stderr)
    attention = run.use_its_attention(precision, batch_size, device)
    names = split.source.class_names
    passes: dict[str, Any] = {
        **run.as_trained,
        "batch_size": batch_size,
        "device": device,
        "precision": precision,
        "num_workers": options.num_workers,
    }
    started = time.perf_counter()

    def closing() -> dict[str, Any]:
        seconds = time.perf_counter() - started
        return {
            "precision": precision, "attention": attention, "batch_size": batch_size, "seconds": seconds,
            "env": software_and_device(device),
        }  # fmt: skip

    if options.probe is not None:
        from vit_gelu.cli.probing import run_probe
        from vit_gelu.training.record import write_json

        found = run_probe(
            options.probe,
            net,
            split,
            shots=options.shots or [10],
            neighbours=options.neighbours or 20,
            **passes,
        )
        record = _record(run, split) | {"probe": options.probe} | found.record | closing()
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / PROBE, record)
        if options.json:
            print(json.dumps(record, indent=1, allow_nan=False))
            return 0
        print(_subject(checkpoint, card, split, record))
        print(*found.lines, sep="\n")
        print(f"\nfile: {out / PROBE}")
        return 0
    counts = count(
        net, split.images, num_classes=len(names), what=f"{split.source.name} {split.name}", **passes
    )
    record = _record(run, split) | counts.score._asdict()
    record |= {"per_class": class_rows(counts.confusion, names), **closing()}
    score = counts.score
    title = f"{split.source.name}, {split.name} images: top-1 {100 * score.top1:.2f} % (n = {score.n:,})"
    write_evaluation(out, record, counts.confusion, names, title)
    if options.json:
        print(json.dumps(record, indent=1, allow_nan=False))
        return 0
    k = min(5, len(names))
    print(_subject(checkpoint, card, split, record))
    print(
        f"top-1 {100 * score.top1:.2f} %  top-{k} {100 * score.top5:.2f} %  loss {score.loss:.4f}  "
        f"({score.correct:,} of {score.n:,} images)\n"
    )
    print_classes(Console(), record["per_class"])
    print(f"\nfiles: {out}")
    return 0


def _parser() -> Arguments:
    parser = Arguments("evaluate")
    add_pass_options(parser)
    parser.add_argument("--split", type=one_of("split", ("test", "val", "train")), default="test")
    parser.add_argument("--probe", type=one_of("probe", PROBES))
    parser.add_argument("--shots", type=at_least(1), nargs="+")
    parser.add_argument("--neighbours", type=at_least(1))
    return parser


def _check_probe(options: Any) -> None:
    """Refuse options that another probe has, or a split that probes learn from."""
    for option, probe in (("shots", "fewshot"), ("neighbours", "knn")):
        if getattr(options, option) is not None and options.probe != probe:
            raise UsageError(f"--{option}: only with --probe {probe}")
    if options.probe is not None and options.split == "train":
        raise UsageError("--split train: a probe learns from it; it is judged by test or val")


def _subject(checkpoint: Path, card: dict[str, Any], split: "Split", record: dict[str, Any]) -> str:
    return (
        f"{checkpoint} (step {card['step']}) on {split.source.name}, {split.name}; "
        f"{record['precision']} on {record['env']['device']}"
    )


def _out(options: Any, folder: Path, checkpoint: Path, own_name: str) -> Path:
    if options.out is not None:
        return Path(options.out).expanduser()
    data = Path(options.data_name or own_name).expanduser().resolve().stem
    suffix = f"-{options.probe}" if options.probe else ""
    return folder / f"evaluation-{data}-{options.split}-{checkpoint.stem}{suffix}"


def _record(run: "OpenedRun", split: "Split") -> dict[str, Any]:
    from vit_gelu.cli.evaluation_files import SCHEMA

    trained_on = run.card["data"]
    return {
        "schema": SCHEMA,
        **run.record,
        "dataset": {
            "name": split.source.name,
            "split": split.name,
            "n": len(split.images),
            "fingerprint": split.source.fingerprint,
            "trained_on": {"name": trained_on["name"], "fingerprint": trained_on["fingerprint"]},
            "same_as_training": split.source.fingerprint == trained_on["fingerprint"],
            "note": split.note,
        },
    }
