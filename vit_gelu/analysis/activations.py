"""What activations see and do in a trained network: what goes in, and where on its curve it lies."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vit_gelu.activations.modules import GatedLinearUnit
from vit_gelu.activations.recognition import describe_activation
from vit_gelu.models.activation_places import Place

FLAT = LINEAR = 0.01  # how near to 0, or to 1, a slope counts as such
BIN = (
    2.0**-7
)  # a power of two: bins of another width hold now more, now fewer of the numbers that bfloat16 has
EDGE = 20.0  # of the histogram; what lies beyond is in the two outermost bins
BINS = round(2 * EDGE / BIN)
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
CHUNK = 2**20  # numbers worked on at once


@dataclass(frozen=True, eq=False)
class ActivationRow:
    """One activation of a network, over all images and tokens. Shares are fractions.

    Attributes:
        name: of the module, such as ``blocks.0.mlp.act``.
        activation: what it is.
        units: channels that it has.
        n: pre-activations seen.
        mean, sd, minimum, maximum: of the pre-activations.
        quantiles: of the pre-activations at ``QUANTILES``, from a histogram: exact to 0.01 within ± 20.
        negative: share of pre-activations below 0.
        zero: share of outputs that are exactly 0.
        flat: share of pre-activations at which the slope f′ is within 0.01 of 0: what comes back is (almost) nothing.
        linear: within 0.01 of 1: it does nothing to what comes through, but shift it.
        curved: the rest. Of GELU it is where it is neither of ReLU's two halves.
        flat_units: share of units at a flat place for every token of every image: dead, as far as these images tell.
        linear_units: share of units at a linear place for every token.
        learned: its own parameters, such as ``mu`` and ``sigma`` (not its logarithm); the mean where there are several.
        histogram: int64 (BINS,), counts.

    The slope is that of the function itself, as autograd gives it; flat to linear_units are None where there is no
    such thing, as the activation computes a unit from several.
    """

    name: str
    activation: str
    units: int
    n: int
    mean: float
    sd: float
    minimum: float
    maximum: float
    quantiles: tuple[float, ...]
    negative: float
    zero: float
    flat: float | None
    linear: float | None
    curved: float | None
    flat_units: float | None
    linear_units: float | None
    learned: dict[str, float]
    histogram: Tensor


class ActivationStatistics:
    """Sums over any number of batches.

    Of a gated activation the gate's function and its pre-activations are meant.

    Args:
        name: of the module.
        module: in evaluation mode.
        channels_first: its input is (b, units, height, width).
    """

    def __init__(self, name: str, module: nn.Module, channels_first: bool = False) -> None:
        self.name, self.module, self.channels_first = name, module, channels_first
        self.gated = isinstance(module, GatedLinearUnit)
        # By forward, not by a call: the call has the hook that brought us here.
        self.function = (module.inner if isinstance(module, GatedLinearUnit) else module).forward
        self.n = self.outputs = 0

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add a batch of what goes into the module, (..., units).

        Raises:
            ValueError: a number that is not finite.
        """
        if self.gated:
            x = x.chunk(2, dim=-1)[0]
        with torch.autocast(x.device.type, enabled=False):
            if not self.n:
                self._begin(x)
            if not self.elementwise:
                self._add_output(self.function(x.float().clone()))  # it may work in place
            rows = (x.movedim(1, -1) if self.channels_first else x).flatten(0, -2)
            for part in rows.split(max(1, CHUNK // self.units)):
                self._add(part.float())

    def _begin(self, x: Tensor) -> None:
        device = x.device
        self.units = x.shape[1 if self.channels_first else -1]
        self.elementwise = is_elementwise(self.function, x[:2].float())
        self._shift = x.float().mean()
        self._moments = torch.zeros(2, dtype=torch.float64, device=device)
        self._range = torch.tensor([torch.inf, -torch.inf], device=device)
        # negative, zero, flat, linear
        self._counts = torch.zeros(4, dtype=torch.int64, device=device)
        self._histogram = torch.zeros(BINS, dtype=torch.int64, device=device)
        self._always = torch.ones(2, self.units, dtype=torch.bool, device=device)  # flat, linear

    def _add(self, x: Tensor) -> None:
        low, high = x.aminmax()
        if not bool(torch.isfinite(high - low)):  # NaN and infinities alike come through
            raise ValueError(f"{self.name}: its pre-activations are not finite")
        self.n += x.numel()
        apart = x - self._shift  # as it comes, their squares would cancel where the mean is large
        self._moments += torch.stack([apart.sum(), apart.square().sum()]).double()  # torch sums in a tree
        self._range = torch.stack([low.minimum(self._range[0]), high.maximum(self._range[1])])
        bins = ((x.clamp(-EDGE, EDGE) + EDGE) / BIN).long().clamp_(max=BINS - 1)
        self._histogram += torch.bincount(bins.flatten(), minlength=BINS)
        self._counts[0] += torch.count_nonzero(x < 0)
        if self.elementwise:
            y, slope = value_and_slope(self.function, x)
            self._add_output(y)
            flat, linear = slope.abs() <= FLAT, (slope - 1).abs() <= LINEAR
            self._counts[2:] += torch.stack([torch.count_nonzero(flat), torch.count_nonzero(linear)])
            self._always &= torch.stack([flat.all(dim=0), linear.all(dim=0)])

    def _add_output(self, y: Tensor) -> None:
        self.outputs += y.numel()
        self._counts[1] += y.numel() - torch.count_nonzero(y)

    def row(self) -> ActivationRow:
        """What came of it.

        Raises:
            ValueError: the module was never called.
        """
        if not self.n:
            raise ValueError(f"{self.name}: was not called in the network's forward pass")
        total, squares = self._moments.tolist()
        apart = total / self.n
        minimum, maximum = self._range.tolist()
        counts = self._counts.tolist()
        negative, flat, linear = (counts[i] / self.n for i in (0, 2, 3))
        always = self._always.double().mean(dim=1).tolist()
        known = self.elementwise
        histogram = self._histogram.cpu()
        return ActivationRow(
            self.name,
            describe_activation(self.module),
            self.units,
            self.n,
            float(self._shift) + apart,
            max(0.0, squares / self.n - apart**2) ** 0.5,
            minimum,
            maximum,
            quantiles(histogram, minimum, maximum),
            negative,
            counts[1] / self.outputs,
            flat if known else None,
            linear if known else None,
            1 - flat - linear if known else None,
            always[0] if known else None,
            always[1] if known else None,
            learned(self.module),
            histogram,
        )


def learned(module: nn.Module) -> dict[str, float]:
    """The parameters of an activation by name, each as its mean.

    >>> learned(nn.PReLU(init=0.2))
    {'weight': 0.20000000298023224}
    """
    values = {name: p.detach().double() for name, p in module.named_parameters()}
    for name in [n for n in values if n.rpartition(".")[2] == "log_sigma"]:
        values[name.replace("log_sigma", "sigma")] = values.pop(name).exp()
    return {name: float(value.mean()) for name, value in values.items()}


def value_and_slope(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and f′(x) of an elementwise function, as autograd has it."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = function(x * 1)  # not x itself: some work in place
        if not y.requires_grad:
            return y, torch.zeros_like(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
    return y.detach(), slope


def quantiles(histogram: Tensor, minimum: float, maximum: float) -> tuple[float, ...]:
    """Of counts in bins of ``BIN`` from −``EDGE``, at ``QUANTILES``; linear within a bin.

    The outermost bins reach to the minimum and the maximum.
    """
    edges = torch.arange(BINS + 1, dtype=torch.float64) * BIN - EDGE
    edges = edges.clamp(minimum, maximum)
    edges[0], edges[-1] = minimum, maximum
    below = torch.cat([torch.zeros(1, dtype=torch.float64), histogram.double().cumsum(0)])
    found = []
    for q in QUANTILES:
        rank = q * float(below[-1])
        i = int(torch.searchsorted(below, rank, right=False).clamp(1, BINS))
        inside = (rank - float(below[i - 1])) / float(histogram[i - 1])
        found.append(float(edges[i - 1] + inside * (edges[i] - edges[i - 1])))
    return tuple(found)


@torch.no_grad()
def is_elementwise(function: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether every output depends on the input at its own place alone, as far as one trial tells.

    Args:
        function: of a tensor.
        x: what to try it on.

    >>> is_elementwise(torch.relu, torch.randn(4, 6)), is_elementwise(lambda x: x.softmax(-1), torch.randn(4, 6))
    (True, False)
    """
    # At random, as a regular half could be all of a unit or of a token; the global generator stays as it was.
    half = (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.5).to(x.device)
    before, after = function(x.clone()), function(torch.where(half, x + 1, x))
    if before.shape != x.shape:
        return False
    return bool(torch.isclose(before, after, rtol=1e-4, atol=1e-5)[~half].all())


@contextlib.contextmanager
def watching_activations(places: Sequence[Place]) -> Iterator[list[ActivationStatistics]]:
    """Statistics of what goes into activations in every call of the network meanwhile.

    Args:
        places: of ``find_places``; one module at several places is watched once, under its first name.
    """
    watched: dict[int, ActivationStatistics] = {}
    with contextlib.ExitStack() as hooks:
        for place in places:
            if id(place.module) not in watched:
                statistics = ActivationStatistics(place.name, place.module, _channels_first(place.parent))
                watched[id(place.module)] = statistics
                hooks.callback(place.module.register_forward_pre_hook(_adder(statistics)).remove)
        yield list(watched.values())


def _channels_first(parent: nn.Module) -> bool:
    """Whether an activation in ``parent`` sees images: behind convolutions, or in a norm of images."""
    if isinstance(parent, nn.BatchNorm2d | nn.GroupNorm):
        return True
    kinds = [type(child) for child in parent.children()]
    return any(issubclass(k, nn.Conv2d) for k in kinds) and not any(issubclass(k, nn.Linear) for k in kinds)


def _adder(statistics: ActivationStatistics) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda module, inputs: statistics.update(inputs[0])
