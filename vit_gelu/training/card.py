"""What a checkpoint says of itself, and whether a run may go on from it."""

from collections.abc import Sequence
from typing import Any

from vit_gelu.training.checkpoint import CARD, CARD_SCHEMA, is_amid_a_step

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
    }


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
