"""What a run says of itself before it begins: what is trained, where, and what the user may not have meant."""

import sys
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from vit_gelu.cli.machine import lacks_bfloat16, usable_cores
from vit_gelu.cli.run_folder import is_main_process
from vit_gelu.models import VIT_SIZES

if TYPE_CHECKING:
    from vit_gelu.cli.options import TrainCLI


def announce(cli: "TrainCLI") -> None:
    """What is about to run, where."""
    if not is_main_process():
        return
    config, trainer = cli.config, cli.trainer
    device = trainer.strategy.root_device
    what = f"{cli.kind} {network_in_words(config.model)}".strip()
    nodes = f"{trainer.num_nodes} nodes of " if trainer.num_nodes > 1 else ""
    print(
        f"{what}, activation {config.model.activation or 'its own'}, on {config.data.name}, seed "
        f"{config.seed_everything}: {nodes}{trainer.num_devices} x {device.type}, {trainer.precision}"
        f"{', compiled' if config.model.compile else ''} -> {cli.folder}",
        flush=True,
    )
    cluster = getattr(trainer.strategy, "cluster_environment", None)
    if nodes and cluster is not None:
        # They may come minutes later, or, with another port, never.
        where = f"{cluster.main_address}:{cluster.main_port}"
        print(f"waiting for all nodes at {where} (MASTER_ADDR, MASTER_PORT)", flush=True)
    if trainer.num_devices > usable_cores() and device.type == "cpu":
        print(
            f"warning: {trainer.num_devices} processes share {usable_cores()} cores; is there no GPU? "
            "(vit-gelu doctor)",
            file=sys.stderr,
        )
    if config.trainer.enable_checkpointing is False:
        print("warning: no weights are saved (--trainer.enable_checkpointing false)", file=sys.stderr)
    if device.type == "cpu" and "bf16" in str(trainer.precision) and lacks_bfloat16():
        print(
            f"warning: this processor has no bfloat16 instructions and emulates --trainer.precision "
            f"{trainer.precision}, slowly; 32-true is faster here",
            file=sys.stderr,
        )
    if cli.ckpt_path is not None:
        print(f"going on from {cli.ckpt_path}", flush=True)


def network_in_words(model: Namespace) -> str:
    """Its name, and where its size is not that of the name: a recipe may set both, an option only one of them."""
    name = str(model.name or model.pretrained)
    size = VIT_SIZES.get(name)
    given = {field: getattr(model, field, None) for field in ("embed_dim", "depth", "num_heads")}
    other = [f"{k} {v}" for k, v in given.items() if size and v not in (None, getattr(size, k))]
    return f"{name} of {', '.join(other)}" if other else name
