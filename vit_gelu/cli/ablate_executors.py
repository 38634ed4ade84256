"""By what means an ablation is carried out: the options of ``vit-gelu ablate`` for it, and the executor they mean."""

import argparse
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vit_gelu.cli.arguments import Arguments, at_least, one_of
from vit_gelu.cli.errors import UsageError

if TYPE_CHECKING:
    from vit_gelu.ablation.execute import Executor
    from vit_gelu.ablation.plan import Plan
    from vit_gelu.ablation.workspace import Workspace

EXECUTORS = ("local", "slurm", "ray")
SLURM: dict[str, Callable[[str], Any]] = {
    "partition": str,
    "account": str,
    "qos": str,
    "time": at_least(1),
    "gpus": at_least(0),
    "cpus": at_least(1),
    "mem": at_least(1),
    "parallel": at_least(1),
    "cluster": one_of("cluster", ["slurm", "local", "debug"]),
}
RAY: dict[str, Callable[[str], Any]] = {"address": str, "cpus": at_least(1)}


def add_executor_options(parser: Arguments) -> None:
    """Add them to a parser."""
    parser.add_argument("--jobs-per-device", type=at_least(1), default=1)
    parser.add_argument("--executor", type=one_of("executor", EXECUTORS), default="local")
    for name, kind in SLURM.items():
        parser.add_argument(f"--slurm.{name}", type=kind)
    for name, kind in RAY.items():
        parser.add_argument(f"--ray.{name}", type=kind)


def check_executor_options(options: argparse.Namespace) -> None:
    """Refuse options of an executor that was not chosen, or whose package is missing.

    Raises:
        UsageError: names the option, or the extra to install.
    """
    for executor, names in (("slurm", SLURM), ("ray", RAY)):
        given = [name for name in names if getattr(options, f"{executor}.{name}") is not None]
        if given and options.executor != executor:
            raise UsageError(f"--{executor}.{given[0]}: only with --executor {executor}")
    package = {"slurm": "submitit", "ray": "ray"}.get(options.executor)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UsageError(
            f"--executor {options.executor}: {package} is not installed; "
            f'python -m pip install "vit_gelu[{options.executor}]"'
        )
    if options.executor == "slurm" and options.jobs_per_device > 1:
        raise UsageError("--jobs-per-device: not with --executor slurm, whose jobs have devices of their own")


def build_executor(plan: "Plan", workspace: "Workspace", options: argparse.Namespace) -> "Executor":
    """What carries the runs out.

    Raises:
        UsageError: options that do not fit this machine or cluster.
    """
    accelerator, devices = str(plan.arms[0].get("trainer.accelerator")), plan.devices_per_run
    if options.executor == "slurm":
        from vit_gelu.ablation.slurm import SlurmExecutor

        settings = {name: getattr(options, f"slurm.{name}") for name in SLURM}
        return SlurmExecutor(workspace, settings, devices_per_run=devices, accelerator=accelerator)
    if options.executor == "ray":
        from vit_gelu.ablation.ray_cluster import RayExecutor

        return RayExecutor(
            workspace,
            address=getattr(options, "ray.address") or "auto",
            cpus=getattr(options, "ray.cpus"),
            devices_per_run=devices,
            jobs_per_device=options.jobs_per_device,
            accelerator=accelerator,
        )
    from vit_gelu.ablation.local import LocalExecutor
    from vit_gelu.ablation.slots import local_slots

    return LocalExecutor(workspace, local_slots(accelerator, devices, options.jobs_per_device), devices)
