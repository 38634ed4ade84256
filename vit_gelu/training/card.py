"""What a checkpoint says of itself, and whether a run may go on from it."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch

from vit_gelu.training.checkpoint import CARD, CARD_SCHEMA, is_amid_a_step
from vit_gelu.training.record import software_and_device

# Options that are younger than some checkpoints, which had their defaults.
YOUNGER = {"mlp_memory": "fast", "residual_precision": "full"}


def card_of(module: Any) -> dict[str, Any]:
    """The card of a module's training as it stands: plain types.

    Args:
        module: a ``RunModule`` whose network is built, with its Trainer.
    """
    trainer = module.trainer
    data = trainer.datamodule
    return {
        "schema": CARD_SCHEMA,
        "network": module.network.config,
        "data": {
            "name": data.source.name,
            "class_names": list(data.class_names),
            "mean": list(data.mean),
            "std": list(data.std),
            "image_size": list(data.image_size),
            "upsampled_from": list(data.source.image_size) if data.upsample else None,
            "in_channels": data.in_channels,
            "fingerprint": data.fingerprint,
            "global_batch_size": data.global_batch_size,
        },
        "seed": module.seed,
        "epoch": trainer.current_epoch,
        "step": trainer.global_step,
        "batches_seen": module.batches_seen,
        "origin": module.origin,
        "stages": [*module.earlier_stages, stage_of(trainer)],
    }


def stage_of(trainer: Any) -> dict[str, Any]:
    """By what code and on what device a process trains: what may be another when the run is gone on with."""
    return dict(_stage(trainer.strategy.root_device, torch.get_num_threads()))


@functools.cache  # asked for at every save
def _stage(device: torch.device, threads: int) -> dict[str, Any]:
    made_by = software_and_device(device)
    # Plain strings, as a checkpoint holds nothing else: torch's version is an object.
    return {name: made_by[name] and str(made_by[name]) for name in ("git", "vit_gelu", "torch", "device")}


def stages_before(checkpoint: dict[str, Any], mine: dict[str, Any]) -> list[dict[str, Any]]:
    """Stages of a run before it is gone on with by ``mine``: those in a row that are alike are one, as is the last if
    it is like ``mine``; a checkpoint that is older than this has none.
    """
    stages = [stage for stage, _ in itertools.groupby(checkpoint[CARD].get("stages", []))]
    return stages[:-1] if stages and stages[-1] == mine else stages


def check_card(
    checkpoint: dict[str, Any], mine: dict[str, Any], parts: Sequence[str], accumulate: int
) -> None:
    """Refuse to go on from a checkpoint of another model, seed or data, or one that half a step is missing in.

    Args:
        checkpoint: its content.
        mine: card of the run that is to go on.
        parts: of the card, that both must have in common.
        accumulate: batches per optimizer step.

    Raises:
        ValueError: names the first thing that differs, or what to go on from instead.
    """
    saved = checkpoint.get(CARD)
    if saved is None:
        raise ValueError("--ckpt_path: not a checkpoint of vit_gelu")
    if saved["seed"] != mine["seed"]:
        raise ValueError(f"--ckpt_path: the checkpoint has seed {saved['seed']}, this run {mine['seed']}")
    for part in parts:
        if part not in saved:
            raise ValueError(f"--ckpt_path: a checkpoint of another objective, it has no {part} part")
        for name, value in mine[part].items():
            if saved[part].get(name, YOUNGER.get(name)) != value:
                raise ValueError(
                    f"--ckpt_path: the checkpoint has {part} option {name} = {saved[part].get(name)!r}, "
                    f"this run {value!r}; a run goes on only as it began"
                )
    if is_amid_a_step(checkpoint, accumulate):
        raise ValueError(
            f"--ckpt_path: saved by a validation amid --trainer.accumulate_grad_batches {accumulate}, whose gradients "
            "no checkpoint has; go on from last.ckpt"
        )
