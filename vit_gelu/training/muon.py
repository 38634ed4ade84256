"""Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"), batched over equal shapes.

The blocks of a Vision Transformer repeat the same few shapes, so their orthogonalisations run as a handful of
batched products instead of hundreds of small ones.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

# One (a, b, c) per step, flatter near 1 than Jordan's single triple; found by F. L. Cesista (2025), "Squeezing
# 1-2% efficiency gains out of Muon by optimizing the Newton-Schulz coefficients".
QUINTIC = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def orthogonalise(
    matrices: Tensor, coefficients: Sequence[Sequence[float]] = QUINTIC, eps: float = 1e-7
) -> Tensor:
    """Replace U·S·Vᵀ by approximately U·Vᵀ, for each matrix: the Newton–Schulz iteration of Muon.

    Every step maps the singular values, first divided by their root sum of squares, through
    a·s + b·s³ + c·s⁵; with ``QUINTIC`` they end between 0.7 and 1.2 unless they were tiny.

    Args:
        matrices: (..., m, n), any floating dtype; computed in that dtype. m <= n costs least.
        coefficients: a triple per step.
        eps: smallest norm that is divided by.

    Returns:
        Same shape and dtype.

    >>> orthogonalise(torch.diag(torch.tensor([3.0, -0.5]))).diagonal().sign()
    tensor([ 1., -1.])
    """
    x = matrices.reshape(-1, *matrices.shape[-2:])
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for a, b, c in coefficients:
        gram = torch.bmm(x, x.mT)
        # (b·G + c·G²) and (a·X + that·X): one launch each.
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.reshape(matrices.shape)


def update_scale(shape: torch.Size, rule: str) -> float:
    """Factor on the learning rate of a matrix (out, in): how large its orthogonal update should be.

    Raises:
        ValueError: unknown rule.
    """
    rows, columns = shape
    if rule == "match_rms_adamw":  # Liu et al. 2025 (arXiv:2502.16982), Eq. 4
        return 0.2 * math.sqrt(max(rows, columns))
    if rule == "original":
        return math.sqrt(max(1.0, rows / columns))
    raise ValueError(f"--model.optimizer_kwargs: adjust_lr_fn {rule!r}: must be match_rms_adamw or original")


class Muon(Optimizer):
    """Momentum whose matrix updates are orthogonalised; AdamW for what is not a hidden matrix.

    Kernels of convolutions count as matrices (out, in · height · width). On a GPU the orthogonalisation runs in
    bfloat16, on a CPU in float32: many CPUs emulate bfloat16, and those that have it gain a few milliseconds.

    Args:
        params: parameters or groups; a group with ``use_fallback=True`` is left to AdamW.
        lr: learning rate of both parts.
        weight_decay: decoupled, of both parts.
        momentum: of the matrices.
        nesterov: look ahead by one step of the momentum.
        ns_coefficients: see ``orthogonalise``.
        adjust_lr_fn: ``match_rms_adamw`` (updates as large as AdamW's, so that its learning rates carry over)
            or ``original``.
        fallback_lr_scale: factor on the learning rate of AdamW's part.
        betas, eps: AdamW's own.

    Raises:
        ValueError: a value out of its range; a parameter of one dimension that is not left to AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Sequence[Sequence[float]] = QUINTIC,
        adjust_lr_fn: str = "match_rms_adamw",
        fallback_lr_scale: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        for name, value in (("momentum", momentum), ("betas", betas[0]), ("betas", betas[1])):
            if not 0 <= value < 1:
                raise ValueError(f"--model.optimizer_kwargs: {name} {value}: must lie in [0, 1)")
        if not ns_coefficients or any(len(triple) != 3 for triple in ns_coefficients):
            raise ValueError(
                "--model.optimizer_kwargs: ns_coefficients: must be a list of [a, b, c], one a step"
            )
        update_scale(torch.Size((1, 1)), adjust_lr_fn)
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": tuple(tuple(float(x) for x in triple) for triple in ns_coefficients),
            "adjust_lr_fn": adjust_lr_fn,
            "fallback_lr_scale": fallback_lr_scale,
            "betas": tuple(betas),
            "eps": eps,
            "use_fallback": False,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            if not group["use_fallback"] and any(p.ndim < 2 for p in group["params"]):
                raise ValueError("Muon takes matrices; leave vectors to AdamW with use_fallback=True")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns what ``closure`` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._step_adamw if group["use_fallback"] else self._step_matrices)(group, params)
        return loss

    def _buffers(self, params: list[Tensor], name: str) -> list[Tensor]:
        for p in params:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return [self.state[p][name] for p in params]

    def _step_matrices(self, group: dict[str, Any], params: list[Tensor]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        momenta = self._buffers(params, "momentum_buffer")
        lr, momentum = group["lr"], group["momentum"]
        torch._foreach_lerp_(momenta, grads, 1 - momentum)
        updates = torch._foreach_lerp(grads, momenta, momentum) if group["nesterov"] else momenta
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])

        alike: dict[tuple[torch.Size, torch.device], list[int]] = {}
        flat = [update.flatten(1) for update in updates]
        for i, update in enumerate(flat):
            alike.setdefault((update.shape, update.device), []).append(i)
        for (shape, device), members in alike.items():
            rows, columns = shape
            stack = torch.stack([flat[i] for i in members])
            stack = stack.to(torch.bfloat16 if device.type == "cuda" else torch.float32)
            directions = orthogonalise(stack if rows <= columns else stack.mT, group["ns_coefficients"])
            if rows > columns:
                directions = directions.mT
            directions = directions.to(params[members[0]].dtype, memory_format=torch.contiguous_format)
            # The learning rate may be a tensor, which no option named alpha takes.
            directions *= -lr * update_scale(shape, group["adjust_lr_fn"])
            moved = [params[i] for i in members]
            along = [d.view(p.shape) for p, d in zip(moved, directions.unbind(), strict=True)]
            torch._foreach_add_(moved, along)

    def _step_adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if "step" not in self.state[p]:
                # Where the fused kernel wants it: on the parameter's device, float32.
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        beta1, beta2 = group["betas"]
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
            self._buffers(params, "exp_avg"),
            self._buffers(params, "exp_avg_sq"),
            [],
            [self.state[p]["step"] for p in params],
            foreach=False,
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"] * group["fallback_lr_scale"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
