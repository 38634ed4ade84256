"""``vit-gelu export``: a trained network for timm, as plain weights, as ONNX or as torch.export's program."""

import json
import sys
from pathlib import Path

from vit_gelu.cli.arguments import Arguments, one_of, wants_help
from vit_gelu.cli.errors import FAILED, UsageError

FORMATS = ("timm", "state_dict", "onnx", "torch_export")

HELP = """usage: vit-gelu export RUN --format FORMAT [OPTIONS]

A trained network for use elsewhere. It is written, read again from the files and compared, logit by
logit, with the run's own on real images, before the command says that it is done; if they differ,
the files are deleted and the exit code is 1. RUN is a run folder or a checkpoint (.ckpt).

formats:
  timm                     a folder for timm.create_model("local-dir:DIR", pretrained=True), with a
                           model card; also what a hub repository holds
  state_dict               model.safetensors and model.pth, with timm's parameter names
  onnx                     model.onnx, any number of images at a time (extra: vit_gelu[onnx])
  torch_export             model.pt2 for torch.export.load, any number of images at a time

options:
  --out DIR                the folder to write (default: export-FORMAT in the run)
  --checkpoint last|best   which weights of a run folder (default: last)
  --with_preprocessing     onnx, torch_export: take uint8 pixels, and normalise them in the graph
                           (default: float32 images that are normalised already)
  --data.root DIR          where data sets are looked for; nothing is downloaded, and without the
                           run's validation images the comparison is made on noise
  --overwrite              replace an export that is there
  --json                   print export.json in place of sentences

What stock timm cannot build (gelu_learnable, laplace_lu, relu_squared, softplus, an activation of your
own, options of an activation) is refused for --format timm; the other formats take everything.

examples:
  vit-gelu export runs/digits-vit_tiny-gelu-seed0 --format timm
  vit-gelu export runs/cifar10-vit_tiny-gelu-seed0 --format onnx --with_preprocessing --out served
  vit-gelu export last.ckpt --format state_dict --out weights
"""


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    if wants_help(argv):
        print(HELP, end="")
        return 0
    options = _parser().parse_args(argv)
    if options.format is None:
        raise UsageError(f"--format is missing: one of {', '.join(FORMATS)}")
    run = Path(options.run).expanduser()
    if options.checkpoint and run.is_file():
        raise UsageError(f"--checkpoint {options.checkpoint}: only for a run folder; {run} is a file")

    from vit_gelu.cli.evaluation_data import run_config
    from vit_gelu.export.folder import MARKER, refuse_to_overwrite
    from vit_gelu.export.formats import check_format, export
    from vit_gelu.export.trained import read_trained
    from vit_gelu.export.verification import ExportFailed
    from vit_gelu.training.checkpoint import find_checkpoint

    check_format(options.format, preprocessing=options.with_preprocessing)
    checkpoint = find_checkpoint(run, options.checkpoint or "last")
    config = run_config(checkpoint)
    base = checkpoint.parent.parent if config else checkpoint.parent
    out = Path(options.out).expanduser() if options.out is not None else base / f"export-{options.format}"
    refuse_to_overwrite(out, options.overwrite)
    trained = read_trained(checkpoint, config)
    try:
        verified = export(
            trained,
            options.format,
            out,
            preprocessing=options.with_preprocessing,
            overwrite=options.overwrite,
            root=options.data_root,
        )
    except ExportFailed as error:
        print(f"vit-gelu export: failed: {error}; nothing was kept", file=sys.stderr)
        return FAILED
    record = json.loads((out / MARKER).read_text(encoding="utf-8"))
    if options.json:
        print(json.dumps(record, indent=1, allow_nan=False))
        return 0
    print(f"{checkpoint} (step {trained.card['step']}), activation {trained.activation}")
    for note in trained.notes:
        print(f"note: {note}")
    if "opset" in record:
        print(f"ONNX opset {record['opset']}")
    print(verified.text)
    print(f"files: {out} ({', '.join(sorted(p.name for p in out.iterdir()))})")
    return 0


def _parser() -> Arguments:
    parser = Arguments("export")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--format", type=one_of("format", FORMATS))
    parser.add_argument("--out")
    parser.add_argument("--checkpoint", type=one_of("checkpoint", ("last", "best")))
    parser.add_argument("--with_preprocessing", action="store_true")
    parser.add_argument("--data.root", dest="data_root")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser
