"""Optimizer, parameter groups and learning-rate schedule."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from timm.optim import get_optimizer_class, list_optimizers
from torch import nn
from torch.optim import Optimizer

from vit_gelu.suggest import unknown
from vit_gelu.training.freeze import head_name
from vit_gelu.training.muon import Muon

SCHEDULES = ("cosine", "linear", "constant")

_TORCH_OPTIMIZERS = {
    name.lower(): cls
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls) and issubclass(cls, Optimizer) and cls is not Optimizer
}


def parameter_groups(
    module: nn.Module, weight_decay: float, *, layer_scales: dict[str, float] | None = None
) -> list[dict[str, Any]]:
    """Split parameters by rule: matrices and kernels decay, everything else does not.

    A parameter decays when it has two dimensions or more, unless the model's ``no_weight_decay()`` names it
    (position embeddings, class token) or it carries ``no_weight_decay = True`` (a learnable activation's).
    Frozen parameters are left out.

    Args:
        module: the network.
        weight_decay: of what decays.
        layer_scales: factor on the learning rate per parameter's name; see ``layer_decay.layer_scales``.

    Returns:
        Groups with keys ``params``, ``weight_decay``, ``use_fallback`` and ``lr_scale``, those with the full
        learning rate first. ``use_fallback`` tells Muon-like optimizers which parameters are not hidden matrices:
        vectors, embeddings, and the head, as Jordan et al. (2024, "Muon") prescribe. Others ignore it.
    """
    scales = layer_scales or {}
    heads = {"head", head_name(module).rpartition(".")[2]}
    rule = getattr(module, "no_weight_decay", None)
    listed: set[str] = set(rule()) if callable(rule) else set()
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = (
            parameter.ndim >= 2 and name not in listed and not getattr(parameter, "no_weight_decay", False)
        )
        matrix = decays and name.rpartition(".")[0].rpartition(".")[2] not in heads
        groups.setdefault((scales.get(name, 1.0), decays, matrix), []).append(parameter)
    return [
        {
            "params": params,
            "weight_decay": weight_decay if decays else 0.0,
            "use_fallback": not matrix,
            "lr_scale": scale,
        }
        for (scale, decays, matrix), params in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


def optimizer_names() -> list[str]:
    """Names that ``build_optimizer`` knows: timm's and torch's, lower case, sorted."""
    return sorted({*map(str, list_optimizers()), *_TORCH_OPTIMIZERS})


def resolve_optimizer(name: str) -> Callable[..., Optimizer]:
    """The constructor behind an optimizer's name, case-insensitive.

    torch's own class where it has one (AdamW, SGD, …), else timm's; except for Muon, which is ours: torch's
    refuses everything that is not a matrix, timm's works matrix by matrix in bfloat16, slow on a CPU.

    Raises:
        ValueError: no optimizer of that name.
    """
    lower = name.lower()
    if lower == "muon":
        return Muon
    if lower in _TORCH_OPTIMIZERS:
        return _TORCH_OPTIMIZERS[lower]
    if lower in list_optimizers():
        return get_optimizer_class(lower)
    raise ValueError("--model.optimizer: " + unknown("optimizer", name, optimizer_names(), limit=12))


def build_optimizer(
    module: nn.Module,
    name: str,
    *,
    lr: float,
    weight_decay: float,
    fused: bool = True,
    layer_scales: dict[str, float] | None = None,
    **kwargs: Any,
) -> Optimizer:
    """An optimizer over ``parameter_groups(module, weight_decay)``.

    Args:
        module: the network.
        name: see ``resolve_optimizer``.
        lr: learning rate, > 0.
        weight_decay: of the matrices, >= 0.
        fused: use the optimizer's fused kernel where it has one.
        layer_scales: factor on the learning rate per parameter's name.
        kwargs: handed to the optimizer (betas, momentum, …).

    Raises:
        ValueError: unknown name, a value out of range, an option that this optimizer does not have, or nothing
            that can be trained.
    """
    if not lr > 0:
        raise ValueError(f"--model.lr {lr}: must be > 0")
    if not weight_decay >= 0:
        raise ValueError(f"--model.weight_decay {weight_decay}: must be >= 0")
    constructor = resolve_optimizer(name)
    accepted = inspect.signature(constructor).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    valid = [k for k in accepted if k not in ("params", "lr", "weight_decay", "kwargs")]
    for option in kwargs:
        if option not in valid and not takes_any:
            raise ValueError(
                "--model.optimizer_kwargs: "
                + unknown(f"option of {name}", option, valid)
                + "\nIs it the recipe's, for its own optimizer? Leave it out with --model.optimizer_kwargs null"
            )
    groups = parameter_groups(module, weight_decay, layer_scales=layer_scales)
    if not groups:
        raise ValueError(
            "--model.freeze: leaves nothing to train; freeze less, or: vit-gelu evaluate --probe linear"
        )
    for group in groups:
        group["lr"] = lr * group.pop("lr_scale")
    if "weight_decay" not in accepted and not takes_any:
        if weight_decay:
            raise ValueError(f"--model.weight_decay {weight_decay}: {name} has none; set it to 0")
        groups = [{k: v for k, v in g.items() if k != "weight_decay"} for g in groups]
    if "betas" in kwargs:
        kwargs["betas"] = tuple(kwargs["betas"])
    if "fused" in accepted and kwargs.get("foreach") is None:
        # One kernel for the whole step; what torch itself recommends on every device that has it.
        kwargs.setdefault("fused", fused)
    try:
        return constructor(groups, lr=lr, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"--model.optimizer_kwargs {kwargs}: {name} does not take these values: {error}"
        ) from None


def schedule_factor(
    step: int, *, total_steps: int, warmup_steps: int, schedule: str, final_lr_fraction: float = 0.0
) -> float:
    """Factor on the learning rate for optimizer step ``step`` (counted from 0).

    Linear warm-up, (step + 1) / (warmup_steps + 1), so that no step has rate 0; then from 1 down to
    ``final_lr_fraction`` along a half cosine (Loshchilov & Hutter 2017, "SGDR", Eq. 5, without restarts) or a
    straight line, or constant.

    >>> [round(schedule_factor(s, total_steps=9, warmup_steps=1, schedule="cosine"), 3) for s in (0, 1, 5, 9)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
    return final_lr_fraction + (1 - final_lr_fraction) * shape


def warmup_length(epochs: float, steps: int | None, *, steps_per_epoch: int, total_steps: int) -> int:
    """Optimizer steps of a warm-up that was asked for in epochs or, if not None, in steps.

    Raises:
        ValueError: longer than the training.
    """
    asked = round(epochs * steps_per_epoch) if steps is None else steps
    if asked <= total_steps:
        return asked
    most = f"warmup_steps {total_steps}"
    if steps is None:
        most = f"warmup_epochs {math.floor(100 * total_steps / steps_per_epoch) / 100:g}"
    option = f"warmup_epochs {epochs:g}" if steps is None else f"warmup_steps {steps}"
    raise ValueError(
        f"--model.{option}: a warm-up of {asked} steps does not fit a training of {total_steps}; at most "
        f"--model.{most}"
    )


def build_schedule(
    optimizer: Optimizer,
    *,
    total_steps: int,
    warmup_steps: int,
    schedule: str = "cosine",
    final_lr_fraction: float = 0.0,
) -> torch.optim.lr_scheduler.LambdaLR:
    """``schedule_factor`` as a scheduler that is stepped once per optimizer step.

    Raises:
        ValueError: unknown schedule, warm-up longer than the training, fraction outside [0, 1].
    """
    if schedule not in SCHEDULES:
        raise ValueError("--model.schedule: " + unknown("schedule", schedule, SCHEDULES))
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"--model.warmup_steps {warmup_steps}: does not fit a training of {total_steps} steps"
        )
    if not 0 <= final_lr_fraction <= 1:
        raise ValueError(f"--model.final_lr_fraction {final_lr_fraction}: must lie between 0 and 1")

    def factor(step: int) -> float:
        return schedule_factor(
            step,
            total_steps=total_steps,
            warmup_steps=warmup_steps,
            schedule=schedule,
            final_lr_fraction=final_lr_fraction,
        )

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
