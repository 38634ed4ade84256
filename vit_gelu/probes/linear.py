"""Linear probe: multinomial logistic regression on frozen features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_gelu.probes.features import Features, Hits, hits, standardisation

GRID = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
MAX_ITERATIONS = 1000
TOLERANCE = 1e-7  # largest entry of the gradient; a warm start must not pass for a fit


class Logistic(NamedTuple):
    """A fitted multinomial logistic regression.

    Attributes:
        weight: (num_classes, d).
        bias: (num_classes,).
        iterations: evaluations of loss and gradient that the fit took.
        converged: whether the gradient came below the tolerance.
    """

    weight: Tensor
    bias: Tensor
    iterations: int
    converged: bool

    def logits(self, values: Tensor) -> Tensor:
        """Features (n, d) -> (n, num_classes)."""
        return F.linear(values, self.weight, self.bias)


def fit_logistic(
    features: Features, num_classes: int, l2: float, *, start: Logistic | None = None
) -> Logistic:
    """Minimise mean cross-entropy + l2 / 2 · |weight|², over weight and bias, by L-BFGS.

    The problem is convex: where it starts changes how long it takes. In scikit-learn's terms C = 1 / (n · l2).

    Args:
        features: float64: the line search of a weakly regularised fit gets lost in the rounding of float32.
        num_classes: classes; labels are below.
        l2: strength of the regularisation, > 0; the bias has none.
        start: a fit with another strength; zeros if not given.
    """
    values, labels = features.values, features.labels
    if start is None:
        weight = values.new_zeros(num_classes, values.shape[1])
        bias = values.new_zeros(num_classes)
    else:
        weight, bias = start.weight.clone(), start.bias.clone()
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    solver = torch.optim.LBFGS(
        parameters,
        max_iter=MAX_ITERATIONS,
        history_size=20,
        tolerance_grad=TOLERANCE,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
    evaluations = 0

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        solver.zero_grad()
        loss = F.cross_entropy(F.linear(values, weight, bias), labels) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
        closure()
    steepest = max(float(p.grad.abs().max()) for p in parameters if p.grad is not None)
    return Logistic(weight.detach(), bias.detach(), evaluations, steepest <= TOLERANCE)


@dataclass(frozen=True)
class LinearProbe:
    """What a linear probe came to.

    Attributes:
        hits: on the images that it is judged by.
        loss: mean cross-entropy there, nats.
        l2: the chosen strength.
        grid: of every strength that was tried ``l2``, ``top1`` (fraction, on the images that choose),
            ``iterations``, ``converged``.
    """

    hits: Hits
    loss: float
    l2: float
    grid: list[dict[str, Any]]

    @property
    def converged(self) -> bool:
        """Whether the chosen fit did."""
        return next(row["converged"] for row in self.grid if row["l2"] == self.l2)

    @property
    def at_edge(self) -> bool:
        """Whether a strength beyond the grid might have been better."""
        return self.l2 in (min(row["l2"] for row in self.grid), max(row["l2"] for row in self.grid))


def linear_probe(
    train: Features, chooses: Features, judges: Features, num_classes: int, grid: Sequence[float] = GRID
) -> LinearProbe:
    """Fit on ``train``, choose the strength of the regularisation by top-1 on ``chooses``, judge on ``judges``.

    Features are standardised with the mean and deviation of ``train``, and all is computed in float64. Of equally good
    strengths the larger is taken.

    Args:
        train, chooses, judges: three disjoint sets of images, on one device.
        num_classes: classes.
        grid: strengths to try, see ``fit_logistic``.
    """
    mean, deviation = standardisation(train.values.double())

    def ready(part: Features) -> Features:
        return Features((part.values.double() - mean) / deviation, part.labels)

    train, chooses, judges = ready(train), ready(chooses), ready(judges)
    rows: list[dict[str, Any]] = []
    best: tuple[int, Logistic, float] | None = None
    fit: Logistic | None = None
    # From strong to weak: each fit starts near where the one before ended.
    for l2 in sorted(grid, reverse=True):
        fit = fit_logistic(train, num_classes, l2, start=fit)
        found = hits(fit.logits(chooses.values).argmax(dim=1), chooses.labels)
        rows.append({"l2": l2, "top1": found.top1, "iterations": fit.iterations, "converged": fit.converged})
        if best is None or found.correct > best[0]:
            best = found.correct, fit, l2
    assert best is not None
    _, fit, l2 = best
    logits = fit.logits(judges.values)
    return LinearProbe(
        hits(logits.argmax(dim=1), judges.labels), float(F.cross_entropy(logits, judges.labels)), l2, rows
    )
