"""``vit-gelu train``: from options to a finished run folder."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_gelu.cli.configs import DEFAULT_CONFIG, expand_configs
from vit_gelu.cli.errors import FAILED, UsageError
from vit_gelu.suggest import unknown

if TYPE_CHECKING:
    from vit_gelu.cli.options import TrainCLI

TOPICS = ("all", "model", "data", "trainer", "augment")

HELP = """usage: vit-gelu train [--config FILE ...] [--activation NAME] [--seed N] [OPTIONS]

Train a Vision Transformer, test it once, and write a run folder: config.yaml, metrics.csv,
record.json and checkpoints/. Options are applied from left to right; later ones win.

what to train:
  --config FILE                a recipe: a YAML file, or the name of a shipped one
                               (default: {default}); may be given several times
  --activation NAME            gelu, relu, silu, ..., or your_package.your_module.YourActivation
  --seed N                     fixes initial weights, order, augmentation and noise (default 0)
  --model.name SIZE            vit_tiny, vit_small, vit_base, vit_large, vit_huge, or timm/NAME
  --model.patch_size N         side of a patch in pixels
  --model.embed_dim N          width; likewise --model.depth, --model.num_heads
  --model.pooling P            cls or mean

from a checkpoint:
  --model.pretrained SOURCE    a timm name with tag, hf-hub:OWNER/NAME, a file, a timm folder or a
                               run folder; keeps its activation, unless --activation asks for another
  --model.anneal_activation N  blend the new activation in over N steps
  --model.freeze PART          backbone, a number of blocks, or names of modules
  --model.layer_decay X        learning rate falls by this factor from layer to layer

data:
  --data.name NAME             cifar10, cifar100, digits, an array file (.npz) or an image folder
  --data.root DIR              where data sets are looked for and kept
  --data.global_batch_size N   images per step, over all devices
  --data.augment POLICY        augmentation of the training images

optimization:
  --model.optimizer NAME       any optimizer of torch or timm
  --model.lr X                 learning rate; likewise --model.weight_decay
  --trainer.max_epochs N       length of the training
  --trainer.precision P        32-true, bf16-mixed or 16-mixed
  --trainer.devices N          how many devices (default: all)

run:
  --out DIR                    run folder (default: a new one under runs/)
  --resume DIR                 go on with the run in DIR as if it had never stopped
  --ckpt_path last|FILE        go on from a checkpoint; "last" looks in --out, or for the
                               newest run of these options
  --test_checkpoint last|best  which weights the test set sees (default: last)
  --loggers NAME ...           csv, tensorboard, wandb (default: [csv, tensorboard])

all options:                   vit-gelu train --help all | model | data | trainer | augment

examples:
  vit-gelu train --config digits --activation gelu
  vit-gelu train --config cifar10_cpu --activation relu --seed 1 --data.root ~/data
  vit-gelu train --activation my_package.MyAct --trainer.devices 8
  vit-gelu train --config finetune/cifar10_cpu --model.pretrained runs/cifar100-vit_tiny-gelu-seed0
  vit-gelu train --resume runs/cifar10-vit_tiny-gelu-seed0
"""


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    if show_help(argv, "train", HELP.format(default=DEFAULT_CONFIG)):
        return 0
    return run(argv)


def show_help(argv: list[str], command: str, page: str) -> bool:
    """Print the help that was asked for: ``page``, or that of a topic; False where none was.

    Raises:
        UsageError: no such topic.
    """
    place = next((i for i, a in enumerate(argv) if a in ("-h", "--help")), None)
    if place is None:
        return False
    topic = argv[place + 1] if place + 1 < len(argv) else ""
    if topic and not topic.startswith("-") and topic not in TOPICS:
        raise UsageError("--help: " + unknown("topic", topic, TOPICS))
    if topic not in TOPICS:
        print(page, end="")
    elif topic == "augment":
        from vit_gelu.data.policies import describe_policies

        print(describe_policies(), end="")
    else:
        from vit_gelu.cli.options import full_help

        print(full_help(topic, command), end="")
    return True


def run(argv: list[str]) -> int:
    """Parse, prepare the run folder, train, print the result."""
    return carry_out(argv, "train", print_result)


def carry_out(
    argv: list[str],
    command: str,
    show: Callable[[dict[str, Any]], None],
    at_end: Callable[["TrainCLI"], None] | None = None,
) -> int:
    """One run of a command that trains; returns its exit status.

    Args:
        argv: its arguments.
        command: ``train`` or ``pretrain``.
        show: prints the outcome.
        at_end: called in process 0 with the judged network, before the record is written.
    """
    resume = _take(argv, "--resume")
    argv = expand_configs(argv if resume is None else _resume_arguments(argv, resume, command), command)

    quieten()
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from vit_gelu.cli.announcement import announce
    from vit_gelu.cli.missing_memory import missing_memory
    from vit_gelu.cli.options import COMMANDS
    from vit_gelu.cli.out_of_memory import less_memory
    from vit_gelu.training.checkpoints import Interrupted
    from vit_gelu.training.monitor import Diverged
    from vit_gelu.training.run import train

    cli = COMMANDS[command].parse(argv)
    finished = cli.run_folder.prepare()
    if finished is not None:
        print(f"{cli.folder}: finished already; nothing to go on with")
        show(finished)
        return 0
    try:
        announce(cli)
        record = train(
            cli.model,
            cli.datamodule,
            cli.trainer,
            cli.folder,
            config=cli.resolved,
            ckpt_path=cli.ckpt_path,
            test_checkpoint=cli.config.get("test_checkpoint", "last"),
            at_end=(lambda: at_end(cli)) if at_end is not None else None,
        )
    except Diverged as error:
        if cli.trainer.is_global_zero:
            print(f"vit-gelu {command}: diverged: {error}", file=sys.stderr)
            print(f"record: {cli.folder / 'record.json'}", file=sys.stderr)
        return FAILED
    except Interrupted as error:
        if cli.trainer.is_global_zero:
            print(f"vit-gelu {command}: {error}; saved. Go on with:", file=sys.stderr)
            print(f"  vit-gelu {command} --resume {cli.folder}", file=sys.stderr)
        return 128 + error.signum
    except MisconfigurationException as error:
        # Options that did not fit the data: the Trainer knows them from there on.
        cli.run_folder.discard()
        raise UsageError(f"--trainer: {error}") from error
    except Exception as error:
        cli.run_folder.discard()
        words = missing_memory(error)
        if words is None:
            raise
        raise less_memory(
            words,
            error,
            cli.config,
            folder=cli.folder,
            processes=cli.trainer.world_size,
            full_precision=str(cli.trainer.precision).startswith("32"),
        ) from error
    finally:
        cli.run_folder.leave()
    if cli.trainer.is_global_zero:
        show(record)
        print(f"run folder: {cli.folder}")
    leave_group()
    return 0


def leave_group() -> None:
    """Say goodbye to the other processes: left to the end of Python, torch 2.11 aborts now and then."""
    import torch.distributed as distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def quieten() -> None:
    """Leave out what Lightning and torch say to developers; what the user must know stays, a line each."""
    import logging

    # Their loggers set their own level at import, so ours has to come after it.
    import lightning.pytorch  # noqa: F401

    for name in ("lightning.pytorch", "lightning.fabric", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    ignored = (
        ".*does not have many workers.*",
        ".*overrides the configure_model.*",
        ".*smaller than the logging interval.*",
        ".*it is recommended to use `Trainer\\(devices=1.*",
        ".*using `DistributedSampler` with the dataloaders.*",
        ".*Online softmax is disabled on the fly.*",
        ".*litlogger.*",
        ".*Skipping val loop.*",
        ".*You are using the .*Averaging callback, but.*",
        ".*You're using the WeightAveraging callback, but.*",
        ".*sync_dist=True.*",  # every process has the sum already
    )
    for message in ignored:
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)

    def show(
        message: Any, category: Any, filename: Any, lineno: Any, file: Any = None, line: Any = None
    ) -> None:
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    warnings.showwarning = show


def _take(argv: list[str], option: str) -> str | None:
    """The value of an option that is given to us, not to the parser; None when it is absent."""
    value = None
    for i, argument in enumerate(argv):
        if argument == option:
            if i + 1 == len(argv):
                raise UsageError(f"{option}: expects a value")
            value = argv[i + 1]
        elif argument.startswith(option + "="):
            value = argument.split("=", 1)[1]
    return value


def _resume_arguments(argv: list[str], folder: str, command: str) -> list[str]:
    config = Path(folder) / "config.yaml"
    if not Path(folder).is_dir():
        raise UsageError(f"--resume {folder}: no such folder")
    if not config.is_file():
        raise UsageError(f"--resume {folder}: holds no config.yaml, so it is not a run folder")
    masked = "\n  mask_ratio:" in config.read_text(encoding="utf-8", errors="replace")
    if masked != (command == "pretrain"):
        other = "pretrain" if masked else "train"
        raise UsageError(
            f"--resume {folder}: is a run of vit-gelu {other}: vit-gelu {other} --resume {folder}"
        )
    for option in ("--out", "--ckpt_path"):
        if _take(argv, option) is not None:
            raise UsageError(f"{option}: not with --resume, which takes it from the run folder")
    rest = []
    skip = False
    for argument in argv:
        if skip:
            skip = False
        elif argument == "--resume":
            skip = True
        elif not argument.startswith("--resume="):
            rest.append(argument)
    return ["--config", str(config), "--out", folder, "--ckpt_path", "last", *rest]


def print_result(record: dict[str, Any]) -> None:
    """The outcome in two lines."""
    if record["status"] != "finished":
        print(f"status {record['status']} at step {record.get('diverged_step')}")
        return
    test, val = record["test"], record["val"]
    if test is not None:
        print(
            f"test top-1 {100 * test['top1']:.2f} %  top-5 {100 * test['top5']:.2f} %  loss {test['loss']:.4f}  "
            f"(n = {test['n']}, {record['tested']} checkpoint)",
            end="  ",
        )
    print(f"val top-1 {100 * val['top1']:.2f} %" if val is not None else "not validated")
    say_if_cut_short(record)
    print_speed(record)


def say_if_cut_short(record: dict[str, Any]) -> None:
    """Warn where a training ended before its schedule did."""
    steps, planned = record["steps"], record.get("planned_steps") or 0
    if steps < planned:
        print(
            f"warning: stopped early, after step {steps:,} of {planned:,}; the learning-rate schedule was not finished",
            file=sys.stderr,
        )


def print_speed(record: dict[str, Any]) -> None:
    """Images per second and duration of a finished run, in a line; nothing where no step was timed."""
    speed = record["speed"]
    rate = speed["train_images_per_second"]
    if rate is not None:
        shared = {True: "", False: ", device shared", None: ""}[speed["exclusive"]]
        timed, steps = speed.get("timed_steps"), record.get("steps")
        part = f" (timed: {timed:,} of {steps:,} steps)" if timed and steps and timed < steps / 2 else ""
        print(f"{rate:,.0f} images/s in training{part}{shared}; {record['seconds']:.1f} s with validation")
    overtaken = speed.get("launch_bound_fraction") or 0.0
    if overtaken > 0.5:
        print(
            f"in {100 * overtaken:.0f} % of the steps the GPU waited for the processor: a larger "
            "--data.global_batch_size or --model.cuda_graphs true may use it better"
        )
