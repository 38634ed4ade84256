"""``vit-gelu bench``: speed, memory and exactness of activations, alone and in the training of a whole ViT."""

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vit_gelu.cli.arguments import Arguments, at_least, one_of, wants_help
from vit_gelu.cli.errors import UsageError
from vit_gelu.suggest import unknown

HELP = """usage: vit-gelu bench activations|training [OPTIONS]

Which activation is how fast, what does it keep in memory, how exact is it?

  activations    each one alone, on the hidden tensor of a ViT's MLP: forward, backward, both
  training       in a whole ViT: the training step and the inference step

Competitors take turns round by round in one process; ratios are paired by round. Results: a table,
bench.json, bench.csv, rounds.csv (every single time), bench.png and bench.svg.

examples:
  vit-gelu bench activations
  vit-gelu bench training --activations relu gelu swiglu
  vit-gelu bench activations --help
"""

COMMON_HELP = """
what competes:
  --activations NAME ...       names or import paths (default: every one there is)
  --baseline NAME              what ratios are taken to (default: relu)
{particular}
where and how:
  --device auto|cpu|cuda|cuda:N  default: a GPU where there is one
  --dtypes D ...               float32, bfloat16, float16 (GPU only; default: all that are possible)
  --compile {choices}
                               torch.compile; compiled and eager are never compared
                               (default: {compile})
  --rounds N                   turns of each competitor, at least 2 (default: 20)
  --min_time SECONDS           least length of a turn (default: 0.02)
  --time_limit SECONDS         stop then, and say what was left out

result:
  --out DIR                    new folder for the files (default: runs/bench-KIND-TIME)
"""

ACTIVATIONS_HELP = (
    """usage: vit-gelu bench activations [OPTIONS]

Every activation on the hidden tensor of a ViT's MLP: time of forward, backward and both, bytes per
second against a copy's, bytes kept for backward, and the largest error against float64.
"""
    + COMMON_HELP.format(
        compile="both",
        choices="true|false|both",
        particular="""  --sizes SIZE ...             Ti/4@32, S/16@224, B/16@224, with a batch Ti/4@32:256, or
                               BATCHxTOKENSxHIDDEN (default: all three; on a CPU Ti/4@32)
""",
    )
    + """
examples:
  vit-gelu bench activations --activations relu gelu silu --compile false
  vit-gelu bench activations --device cuda --sizes B/16@224:256 --dtypes bfloat16
  vit-gelu bench activations --activations relu my_package.MyAct --time_limit 120
"""
)

TRAINING_HELP = (
    """usage: vit-gelu bench training [OPTIONS]

A ViT with each activation, on synthetic images on the device: images per second of the training step
(forward, backward, optimizer) and of inference, memory, FLOPs and MFU.
"""
    + COMMON_HELP.format(
        compile="both; on a CPU false",
        choices="true|false|both|max-autotune",
        particular="""
the model:
  --sizes SIZE ...             Ti/4@32, S/16@224, B/16@224, with a batch Ti/4@32:256
                               (default: all three; on a CPU Ti/4@32)
  --model.name SIZE            vit_tiny, vit_small, vit_base, ...: in place of that of the size
  --model.patch_size N         likewise --model.embed_dim, --model.depth, --model.num_heads,
                               --model.mlp_ratio, --model.pooling, --model.attention, --model.stem,
                               --model.residual_precision
  --model.optimizer NAME       any optimizer of torch or timm (default: adamw)
  --image_size N               pixels
  --batch_size N               images per step
  --num_classes N              of the head
  --precision P ...            32-true, bf16-mixed, 16-mixed: other words for --dtypes
  --cuda_graphs true|false     replay each step whole: no time of the processor's is in it, which
                               launches small models slower than a GPU computes them (default: false)
""",
    )
    + """
examples:
  vit-gelu bench training --activations relu gelu gelu_learnable swiglu
  vit-gelu bench training --device cuda --sizes Ti/4@32:1024 --precision bf16-mixed --compile true
  vit-gelu bench training --model.depth 6 --model.patch_size 8 --batch_size 64
"""
)

HELPS = {"activations": ACTIVATIONS_HELP, "training": TRAINING_HELP}
MODEL_OPTIONS: dict[str, Callable[[str], Any]] = {
    "embed_dim": at_least(1),
    "depth": at_least(1),
    "num_heads": at_least(1),
    "mlp_ratio": float,
    "pooling": str,
    "attention": str,
    "stem": str,
    "residual_precision": str,
}


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    kind, rest = (argv[0], argv[1:]) if argv else ("", [])
    if kind in HELPS and wants_help(rest):
        print(HELPS[kind], end="")
        return 0
    if wants_help(argv):
        print(HELP, end="")
        return 0
    if kind not in HELPS:
        if not kind or kind.startswith("-"):
            raise UsageError(f"activations or training? How to use it: vit-gelu bench --help (got {kind!r})")
        raise UsageError(unknown("benchmark", kind, HELPS))
    return run(kind, _parser(kind).parse_args(rest))


def run(kind: str, asked: argparse.Namespace) -> int:
    """Check what was asked for, claim the folder, measure."""
    from vit_gelu.bench.options import choose_options
    from vit_gelu.bench.results import claim_folder, discard_if_empty
    from vit_gelu.bench.run import run_benchmark, say
    from vit_gelu.cli.train import quieten

    quieten()
    options, notes = choose_options(
        activations=asked.activations,
        baseline=asked.baseline,
        dtypes=asked.dtypes,
        compile=asked.compile,
        device=asked.device,
        rounds=asked.rounds,
        min_time=asked.min_time,
        time_limit=asked.time_limit,
        default_compile={"cuda": "both", "cpu": "both" if kind == "activations" else "false"},
    )
    work: list[Any]
    if kind == "activations":
        from vit_gelu.bench.activations import comparisons as compare

        work = _hidden_sizes(asked, options.device.type)
    else:
        from vit_gelu.bench.subject import check_graphs, check_residual
        from vit_gelu.bench.training import comparisons as compare  # type: ignore[assignment]
        from vit_gelu.training.compilation import AUTOTUNE, check_autotuning

        if asked.cuda_graphs == "true":
            check_graphs(options.device, options.dtypes, asked.optimizer)
        if asked.compile == AUTOTUNE:
            check_autotuning(options.device, "--compile")
        check_residual(asked.model_residual_precision, options.dtypes)
        work = _workloads(asked, options.device.type)
    folder = _folder(kind, asked.out)
    claim_folder(folder)
    plain = vars(asked) | {
        "activations": list(options.activations),
        "dtypes": list(options.dtypes),
        "modes": list(options.modes),
        "device": str(options.device),
        "sizes": [w.label for w in work],
    }
    try:
        run_benchmark(kind, compare(work, options, say), options, plain, folder, notes)
    except (ValueError, OSError):
        discard_if_empty(folder)
        raise
    return 0


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: must be a number of seconds") from None


def _parser(kind: str) -> Arguments:
    parser = Arguments(f"bench {kind}")
    parser.add_argument("--activations", nargs="+", metavar="NAME")
    parser.add_argument("--baseline", default="relu")
    parser.add_argument("--sizes", nargs="+", metavar="SIZE")
    parser.add_argument("--device", default="auto")
    choices = ("true", "false", "both") + (("max-autotune",) if kind == "training" else ())
    parser.add_argument("--compile", type=one_of("choice", choices))
    parser.add_argument("--rounds", type=at_least(2), default=20)
    parser.add_argument("--min_time", type=_number, default=0.02)
    parser.add_argument("--time_limit", type=_number)
    parser.add_argument("--out")
    if kind == "activations":
        parser.add_argument("--dtypes", nargs="+", metavar="D")
        return parser
    parser.add_argument("--dtypes", "--precision", nargs="+", metavar="D")
    parser.add_argument("--model.name", dest="model_name")
    parser.add_argument("--model.patch_size", dest="patch_size", type=at_least(1))
    for name, kind_of in MODEL_OPTIONS.items():
        parser.add_argument(f"--model.{name}", dest=f"model_{name}", type=kind_of)
    parser.add_argument("--model.optimizer", dest="optimizer", default="adamw")
    parser.add_argument("--image_size", type=at_least(1))
    parser.add_argument("--batch_size", type=at_least(1))
    parser.add_argument("--num_classes", type=at_least(1))
    parser.add_argument("--cuda_graphs", type=one_of("choice", ("true", "false")), default="false")
    return parser


def _hidden_sizes(asked: argparse.Namespace, device_type: str) -> list[Any]:
    from vit_gelu.bench.options import unique
    from vit_gelu.bench.sizes import default_sizes, hidden_tensor

    names = unique("--sizes", asked.sizes or default_sizes(device_type))
    return [hidden_tensor(name, device_type) for name in names]


def _workloads(asked: argparse.Namespace, device_type: str) -> list[Any]:
    """The sizes with what was asked for in their place; each model is built once, so that mistakes show now."""
    import torch

    from vit_gelu.bench.options import unique
    from vit_gelu.bench.sizes import default_sizes, model_size
    from vit_gelu.bench.subject import Workload
    from vit_gelu.models import build_vit
    from vit_gelu.training.optim import resolve_optimizer

    overrides = {n: getattr(asked, f"model_{n}") for n in MODEL_OPTIONS}
    overrides = {n: v for n, v in overrides.items() if v is not None}
    resolve_optimizer(asked.optimizer)
    works = []
    for text in unique("--sizes", asked.sizes or default_sizes(device_type)):
        size = model_size(text)
        model, patch = asked.model_name or size.model, asked.patch_size or size.patch_size
        image = asked.image_size or size.image_size
        own = (model, patch, image) == (size.model, size.patch_size, size.image_size)
        label = size.label if own else f"{model}/{patch}@{image}"
        label += "".join(f" {n} {v}" for n, v in overrides.items())
        work = Workload(
            label=label,
            model=model,
            batch=asked.batch_size or size.batch(device_type),
            image_size=image,
            patch_size=patch,
            num_classes=asked.num_classes or size.num_classes,
            overrides=overrides,
            optimizer=asked.optimizer,
            cuda_graphs=asked.cuda_graphs == "true",
            autotune=asked.compile == "max-autotune",
        )
        with torch.device("meta"):
            build_vit(model, image_size=image, patch_size=patch, **overrides)
        works.append(work)
    return works


def _folder(kind: str, out: str | None) -> Path:
    if out is not None:
        return Path(out).expanduser()
    return Path("runs") / f"bench-{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
