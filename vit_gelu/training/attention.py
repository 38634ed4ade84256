"""The attention kernels of a run: asked for, or measured once by process 0, followed by all, and written down."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.callbacks import Callback

from vit_gelu.models import VisionTransformer
from vit_gelu.models.attention_choice import Shape, choose_attention, usable
from vit_gelu.models.attention_kernels import KERNELS
from vit_gelu.models.options import ATTENTIONS, choice
from vit_gelu.whole_file import write_text

PRECISIONS = {
    "64-true": torch.float64,
    "32-true": torch.float32,
    "16-true": torch.float16,
    "16-mixed": torch.float16,
}


@dataclass(frozen=True)
class AttentionInUse:
    """What computes attention in a run.

    Attributes:
        training, evaluation: kernels.
        measured_ms: per mode, each candidate's milliseconds; None where nothing was measured.
        why: in a few words.
    """

    training: str
    evaluation: str
    measured_ms: dict[str, dict[str, float] | None]
    why: str

    def record(self) -> dict[str, Any]:
        """As it stands in ``record.json``."""
        chosen = {"training": self.training, "evaluation": self.evaluation}
        return {"chosen": chosen, "measured_ms": self.measured_ms, "why": self.why}

    def __str__(self) -> str:
        return f"attention: {self.training} in training, {self.evaluation} in evaluation ({self.why})"


def check_choice(attention: str, chosen: list[str] | None) -> None:
    """Refuse an ``attention_choice`` that is not one.

    Raises:
        ValueError: not two kernels, or given beside an attention other than auto.
    """
    if chosen is None:
        return
    if len(chosen) != 2 or "auto" in chosen:
        raise ValueError(
            f"--model.attention_choice {chosen}: must be two kernels, [in training, in evaluation], or null"
        )
    for kernel in chosen:
        choice("attention_choice", kernel, ATTENTIONS[1:])
    if attention != "auto":
        raise ValueError(
            f"--model.attention_choice {chosen}: goes with --model.attention auto, not {attention}; "
            "set it to null"
        )


def shapes(
    net: VisionTransformer,
    batch: int,
    precision: str,
    device: str,
    compiled: bool,
    visible: int | None = None,
) -> list[Shape]:
    """What attention has to do in training and in evaluation.

    Args:
        net: the network.
        batch: images per step and device.
        precision: Lightning's name of it.
        device: its type.
        compiled: whether the training is; evaluation never is.
        visible: how many patches the network is shown, where masked pre-training hides the others.
    """
    config = net.config
    patches = net.patch_embed.num_patches
    seen = max(1, round(patches * (1 - config["patch_dropout"])))
    tokens = [net.num_prefix_tokens + n for n in ((seen, patches) if visible is None else (visible, visible))]
    dtype = PRECISIONS.get(precision, torch.bfloat16)
    common = {
        "batch": batch,
        "heads": config["num_heads"],
        "head_dim": config["embed_dim"] // config["num_heads"],
        "dtype": str(dtype).removeprefix("torch."),
        "autocast": precision.endswith("mixed"),
        "device": device,
    }
    dropout = config["attention_dropout"] > 0
    training = Shape(tokens=tokens[0], dropout=dropout, compiled=compiled, longest=tokens[1], **common)
    return [training, Shape(tokens=tokens[1], training=False, **common)]


def decide(
    both: list[Shape], device: torch.device, *, asked: str, chosen: list[str] | None
) -> AttentionInUse:
    """The kernels of a run.

    Args:
        both: see ``shapes``.
        device: where it runs.
        asked: ``--model.attention``.
        chosen: ``--model.attention_choice``: what auto came to when this run, or the one that it repeats, began.

    Raises:
        ValueError: the kernel that was asked for cannot do this shape on this device.
    """
    nothing: dict[str, dict[str, float] | None] = {"training": None, "evaluation": None}
    if asked != "auto":
        if not all(usable(asked, shape, device) for shape in both):
            able = [k for k in ATTENTIONS[1:] if all(usable(k, s, device) for s in both)]
            raise ValueError(
                f"--model.attention {asked}: cannot compute this model in {both[0].dtype} on "
                f"{device.type}; can: auto, {', '.join(able)}"
            )
        return AttentionInUse(asked, asked, nothing, "asked for")
    why = "measured on this machine"
    if chosen is not None:
        if all(usable(kernel, shape, device) for kernel, shape in zip(chosen, both, strict=True)):
            return AttentionInUse(chosen[0], chosen[1], nothing, "as in the configuration")
        why = f"measured here, since {' and '.join(chosen)} of the configuration cannot run on this device"
    training, evaluation = (choose_attention(shape, device) for shape in both)
    if training.measured_ms is None and evaluation.measured_ms is None:
        why = "by rule, nothing measured"
    measured = {"training": training.measured_ms, "evaluation": evaluation.measured_ms}
    return AttentionInUse(training.kernel, evaluation.kernel, measured, why)


def agree(
    trainer: Any,
    net: VisionTransformer,
    data: Any,
    chosen: list[str] | None,
    *,
    compiled: bool,
    visible: int | None = None,
) -> AttentionInUse:
    """Fix a network's kernels before anything is compiled or computed: process 0 decides, all follow.

    Args:
        trainer: whose processes agree.
        net: changed in place.
        data: for its batch size.
        chosen: see ``decide``.
        compiled: whether training is.
        visible: see ``shapes``.

    Raises:
        ValueError: in every process; see ``decide``.
    """
    answer: AttentionInUse | str = ""
    if trainer.is_global_zero:
        device = trainer.strategy.root_device
        batch = math.ceil(data.global_batch_size / trainer.world_size)
        both = shapes(net, batch, str(trainer.precision), device.type, compiled, visible)
        try:
            answer = decide(both, device, asked=net.config["attention"], chosen=chosen)
        except ValueError as error:
            answer = str(error)  # every process must hear of it, or the others wait for ever
    answer = trainer.strategy.broadcast(answer)
    if isinstance(answer, str):
        raise ValueError(answer)
    net.use_attention(answer.training, answer.evaluation)
    return answer


def compute_as_trained(
    net: VisionTransformer, options: dict[str, Any], *, batch: int, precision: str, device: torch.device
) -> str:
    """Let a trained network compute attention as its run's evaluation did, so that its numbers come out again.

    By rule where that kernel cannot do it: on another device, or in another precision.

    Args:
        net: from ``load_network``; changed in place.
        options: of its run; empty where they are not known.
        batch: images per forward pass.
        precision: Lightning's name of it.
        device: where it will run.

    Returns:
        The kernel, in evaluation.
    """
    asked = net.config["attention"]
    chosen = (options.get("model") or {}).get("attention_choice") if asked == "auto" else [asked, asked]
    shape = shapes(net, batch, precision, device.type, compiled=False)[1]
    kernel = chosen[1] if isinstance(chosen, list) and len(chosen) == 2 else "auto"
    if kernel not in KERNELS or not usable(kernel, shape, device):
        kernel = shape.default
    net.use_attention(kernel, kernel)
    return kernel


def with_choice(config: dict[str, Any], used: AttentionInUse | None) -> dict[str, Any]:
    """A run's options with what ``auto`` came to in ``model.attention_choice``; unchanged where it was not auto."""
    model = config.get("model", {})
    if used is None or model.get("attention") != "auto":
        return config
    return {**config, "model": {**model, "attention_choice": [used.training, used.evaluation]}}


def without_choice(config: dict[str, Any]) -> dict[str, Any]:
    """A run's options as they were asked for, whatever ``auto`` came to."""
    return {**config, "model": {**config.get("model", {}), "attention_choice": None}}


class AttentionNote(Callback):
    """Says what computes attention, and writes what ``auto`` came to into the run's ``config.yaml``.

    So the run goes on, and is repeated, with the same arithmetic, even where a new measurement would differ.

    Args:
        folder: the run folder; without a ``config.yaml`` nothing is written.
    """

    def __init__(self, folder: Path) -> None:
        self.config = Path(folder) / "config.yaml"

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        used = pl_module.attention_in_use
        if used is None or not trainer.is_global_zero:
            return
        print(used, flush=True)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        used = pl_module.attention_in_use
        if used is None or not trainer.is_global_zero:
            return
        if self.config.is_file():
            config = with_choice(yaml.safe_load(self.config.read_text(encoding="utf-8")), used)
            write_text(self.config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
