"""``vit-gelu ablate``: several activations, several seeds each, everything else equal."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_gelu.cli.ablate_executors import add_executor_options, build_executor, check_executor_options
from vit_gelu.cli.arguments import Arguments, at_least, wants_help
from vit_gelu.cli.configs import DEFAULT_CONFIG, find_plan
from vit_gelu.cli.errors import UsageError

if TYPE_CHECKING:
    from vit_gelu.ablation.plan import Plan
    from vit_gelu.ablation.workspace import Workspace

HELP = """usage: vit-gelu ablate PLAN [OPTIONS]
       vit-gelu ablate --config RECIPE --activations A B ... [OPTIONS]

Train every arm with every seed, and compare. PLAN is a YAML file (config, overrides, arms, seeds,
baseline, margin, tune), a shipped plan's name, or the folder of an ablation to go on with.
Whatever stops it, the same command goes on; finished runs are never repeated.

what to compare:
  --config RECIPE        what all arms share, as for vit-gelu train (default: {default})
  --activations A B ...  one arm each
  --seeds N | S S ...    how many (0 to N-1), or which; more may be added later (default: 5)
  --baseline ARM         what the others are compared with (default: relu, else the first)
  --margin X             points of accuracy below which arms count as equal (default: 0.2)
  --model.X V            any option of vit-gelu train, for all arms; likewise --data.X, --trainer.X

how:
  --out DIR              plan, runs, logs and report (default: runs/ablation-PLAN)
  --dry-run              show the runs and how long they will take; write nothing
  --jobs-per-device N    runs that share a device (their speed is then not comparable)
  --devices-per-run N    devices of each run
  --executor WHERE       local (default), slurm or ray
  --slurm.X V            partition, account, qos, time (minutes), gpus, cpus, mem (GB), parallel
  --ray.address A        auto (a cluster that is there), local, or HOST:PORT; --ray.cpus per run

exit status: 0 when every run finished, 1 when some failed or diverged, 2 for a mistake in the plan.

examples:
  vit-gelu ablate configs/ablation/digits.yaml
  vit-gelu ablate --config configs/cifar10.yaml --activations gelu relu elu silu --seeds 10
  vit-gelu ablate cifar10 --seeds 10 --dry-run
  vit-gelu ablate runs/ablation-cifar10          # go on
"""

TRAIN_OPTIONS = ("test_checkpoint", "checkpoint_minutes", "loggers")


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    if wants_help(argv):
        print(HELP.format(default=DEFAULT_CONFIG), end="")
        return 0
    rest, overrides = split_overrides(argv)
    options = _parser().parse_args(rest)
    check_executor_options(options)

    from rich.console import Console

    from vit_gelu.ablation.execute import Ablation, Stopped, finish, only_one
    from vit_gelu.ablation.workspace import Workspace

    plan, folder = load_plan(options, overrides)
    workspace = Workspace(folder)
    console = Console(highlight=False, soft_wrap=True)
    if options.dry_run:
        return _dry_run(plan, workspace, options, console)
    workspace.check(plan)
    executor = build_executor(plan, workspace, options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be made: {error.strerror}") from None
    with only_one(folder):
        workspace.adopt(plan)
        console.print(describe(plan, executor.places) + f" -> {folder}", markup=False)
        try:
            rows = Ablation(plan, workspace, executor, console).run()
        except Stopped as stopped:
            print(f"vit-gelu ablate: {stopped}; saved. Go on with:", file=sys.stderr)
            print(f"  {go_on(folder, argv)}", file=sys.stderr)
            return 128 + stopped.signum
        return finish(plan, workspace, rows, console, executor.broken)


def _parser() -> Arguments:
    parser = Arguments("ablate")
    parser.add_argument("plan", metavar="PLAN", nargs="?")
    parser.add_argument("--config")
    parser.add_argument("--activations", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=_whole)
    parser.add_argument("--baseline")
    parser.add_argument("--margin", type=_number)
    parser.add_argument("--out")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--devices-per-run", type=at_least(1))
    add_executor_options(parser)
    return parser


def _whole(text: str) -> int:
    if not text.removeprefix("-").isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: must be a number of points") from None


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Options of ``vit-gelu train`` apart from ours.

    Raises:
        UsageError: one without a value.

    >>> split_overrides(["plan.yaml", "--model.lr", "0.1", "--seeds", "3", "--data.root=x"])
    (['plan.yaml', '--seeds', '3'], {'model.lr': '0.1', 'data.root': 'x'})
    """
    rest: list[str] = []
    overrides: dict[str, str] = {}
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        ours = argument.startswith("--") and (
            name.split(".")[0] in ("model", "data", "trainer") or name in TRAIN_OPTIONS
        )
        if not ours:
            rest.append(argument)
            continue
        if not equals:
            value = next(arguments, "--")
            if value.startswith("--"):
                raise UsageError(f"--{name}: expects a value")
        overrides[name] = value
    return rest, overrides


def load_plan(options: argparse.Namespace, overrides: dict[str, str]) -> tuple["Plan", Path]:
    """The plan that the command line means, and the folder for it.

    Raises:
        UsageError: a mistake in it.
    """
    path = None if options.plan is None else find_plan(options.plan)
    if path is not None and path.is_dir():
        return _plan_of_folder(path, options, overrides), path
    if path is None and not options.activations:
        raise UsageError(
            "what to compare is missing: a PLAN, or --activations A B ...; see vit-gelu ablate --help"
        )

    from vit_gelu.ablation.specification import build_plan, read_specification
    from vit_gelu.cli.resolve import Resolver

    specification: dict[str, Any] = {} if path is None else read_specification(path)
    for name in ("config", "baseline", "margin"):
        if getattr(options, name) is not None:
            specification[name] = getattr(options, name)
    if options.seeds is not None:
        specification["seeds"] = _seeds(options.seeds)
    if options.activations:
        specification["arms"] = options.activations
    if overrides:
        there = specification.get("overrides") or {}
        if not isinstance(there, dict):
            raise UsageError(f"{path}: overrides: must be a mapping of options, such as model.lr: 0.001")
        flat: dict[str, Any] = {}
        for key, value in there.items():
            nested = isinstance(value, dict) and key in ("model", "data", "trainer")
            flat |= {f"{key}.{k}": v for k, v in value.items()} if nested else {key: value}
        specification["overrides"] = flat | overrides
    plan = build_plan(specification, Resolver(), options.devices_per_run)
    stem = Path(specification.get("config", DEFAULT_CONFIG)).stem if path is None else path.stem
    return plan, Path(options.out).expanduser() if options.out else Path("runs") / f"ablation-{stem}"


def _seeds(given: list[int]) -> int | list[int]:
    return given[0] if len(given) == 1 else given


def _plan_of_folder(folder: Path, options: argparse.Namespace, overrides: dict[str, str]) -> "Plan":
    from vit_gelu.ablation.specification import check_tuning_seeds, parse_seeds
    from vit_gelu.ablation.workspace import read_plan

    plan = read_plan(folder)
    if plan is None:
        raise UsageError(f"{folder}: holds no plan.yaml, so it is not the folder of an ablation")
    fixed = [
        name for name in ("config", "activations", "baseline", "margin", "out") if getattr(options, name)
    ]
    fixed += list(overrides)
    if fixed:
        raise UsageError(
            f"--{fixed[0]}: not with the folder of an ablation, whose plan is fixed; only --seeds may grow"
        )
    if options.devices_per_run not in (None, plan.devices_per_run):
        raise UsageError(
            f"--devices-per-run {options.devices_per_run}: the plan in {folder} has {plan.devices_per_run}"
        )
    if options.seeds is None:
        return plan
    seeds = parse_seeds(_seeds(options.seeds))
    check_tuning_seeds(() if plan.tune is None else plan.tune.seeds, seeds)
    return plan.with_seeds(seeds)


def describe(plan: "Plan", places: int) -> str:
    """A plan in a line."""
    arms = ", ".join(
        f"{arm.label} (baseline)" if arm.label == plan.baseline else arm.label for arm in plan.arms
    )
    n = len(plan.arms) * len(plan.seeds)
    tuning = len(list(plan.tuning_runs()))
    extra = f" after {tuning} tuning runs" if tuning else ""
    at_a_time = min(places, max(n, tuning))
    return f"{arms}: {len(plan.seeds)} seeds each, {n} runs{extra}, {at_a_time} at a time"


def go_on(folder: Path, argv: list[str]) -> str:
    """The command that goes on with an ablation that was stopped."""
    kept = ("--jobs-per-device", "--executor", "--slurm.", "--ray.")
    words, arguments = ["vit-gelu", "ablate", str(folder)], iter(argv)
    for argument in arguments:
        if argument.startswith(kept):
            words += [argument] if "=" in argument else [argument, next(arguments, "")]
    return shlex.join(words)


def _dry_run(plan: "Plan", workspace: "Workspace", options: argparse.Namespace, console: Any) -> int:
    from vit_gelu.ablation.estimate import measure
    from vit_gelu.ablation.slots import local_slots

    there = workspace.check(plan)
    accelerator = str(plan.arms[0].get("trainer.accelerator"))
    slots = local_slots(accelerator, plan.devices_per_run, options.jobs_per_device)
    console.print(describe(plan, len(slots)), markup=False)
    tuning = list(plan.tuning_runs())
    for run in tuning:
        console.print(f"  tuning: {run.id}", markup=False)
    for run in plan.runs():
        state = workspace.state(run).status if there is not None and not tuning else ""
        name = f"{run.arm.label} seed {run.seed}, {plan.tune.option} as chosen" if plan.tune else run.id
        console.print(f"  {name}{f' ({state})' if state not in ('', 'open') else ''}", markup=False)
    todo = [run for run in [*tuning, *plan.runs()] if not workspace.state(run).final]
    if not todo:
        console.print("nothing left to run")
        return 0
    estimate = measure(todo, slots)
    console.print(estimate.text(len(todo), len(slots), options.executor), markup=False)
    return 0
