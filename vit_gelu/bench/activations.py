"""Activations by themselves: time, bandwidth, memory kept and exactness on the hidden tensor of a ViT's MLP."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vit_gelu.activations import build_activation, resolve_activation
from vit_gelu.activations.trial import check_result
from vit_gelu.bench.comparison import (
    Comparison,
    OutOfTime,
    Referee,
    Say,
    check_compiled,
    figures,
    is_ours,
    title,
)
from vit_gelu.bench.compiling import COMPILED, Compilation, compile_alone, first_call
from vit_gelu.bench.devices import device_clock
from vit_gelu.bench.exactness import errors_against_float64
from vit_gelu.bench.memory import kept_for_backward
from vit_gelu.bench.options import DTYPES, Options
from vit_gelu.bench.sizes import HiddenSize
from vit_gelu.bench.timing import Competitor
from vit_gelu.cli.errors import UsageError

PASSES = ("forward", "backward", "both")
COPY = "(copy)"  # no name of an activation has brackets


class Subject:
    """An activation with its input, in training mode, eager or compiled.

    Parameters are float32 whatever the dtype of the input, as in mixed-precision training.

    Args:
        name: of the activation.
        size: of its input, whose values are standard normal.
        dtype, device, mode: how it runs.

    Attributes:
        compilation: of the first call, forward and backward; None in eager mode.
        nominal_bytes: per pass, what must move if every tensor moves once: input and output forward; input,
            gradient in and gradient out backward. 0 for what moves nothing.

    Raises:
        UsageError: it does not run on such a tensor.
    """

    def __init__(self, name: str, size: HiddenSize, dtype: str, device: torch.device, mode: str) -> None:
        self.name = name
        self.module = build_activation(name)
        gated = resolve_activation(name).gated or getattr(self.module, "gated", False)
        shape = size.input_shape(gated)
        check_result(self.module, name, shape[-1], shape[-1] // 2 if gated else shape[-1])
        self.module.to(device)
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(shape, generator=generator).to(device, DTYPES[dtype]).requires_grad_()
        self.inputs = [self.x, *(p for p in self.module.parameters() if p.requires_grad)]
        self.function: Callable[[Tensor], Tensor] = (
            compile_alone(self.module) if mode == COMPILED else self.module
        )
        self.compilation: Compilation | None = None
        self.device = device
        try:
            with torch.no_grad():
                y = self.module(self.x)
            self.grad = torch.randn(y.shape, generator=generator).to(device, y.dtype)
            if mode == COMPILED:
                self.compilation = first_call(self.both, self._synchronise)
            self.both()
        except torch.OutOfMemoryError as error:
            raise UsageError(f"{name} on {size.label}: {error}; choose smaller --sizes") from error
        except (RuntimeError, TypeError, ValueError) as error:
            if is_ours(name):
                raise  # a defect, not a mistake of the user
            reason = " ".join(str(error).split())[:200]
            raise UsageError(
                f"--activations {name}: fails on a {dtype} tensor of shape {tuple(shape)}: {reason}"
            ) from error
        self.aliases = y.untyped_storage().data_ptr() == self.x.untyped_storage().data_ptr()
        x_bytes, y_bytes = self.x.nbytes, y.nbytes
        forward, backward = x_bytes + y_bytes, x_bytes + y_bytes + x_bytes
        self.nominal_bytes = (
            dict.fromkeys(PASSES, 0)
            if self.aliases
            else {"forward": forward, "backward": backward, "both": forward + backward}
        )

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def forward(self) -> Tensor:
        return self.function(self.x)

    def backward(self, y: Tensor) -> Sequence[Tensor | None]:
        return torch.autograd.grad(y, self.inputs, self.grad, allow_unused=True)

    def both(self) -> Sequence[Tensor | None]:
        return self.backward(self.forward())

    def kept(self, with_next_layer: bool) -> int:
        """Bytes kept for backward, by itself or with the output, which the next linear layer keeps."""
        return kept_for_backward(
            self.forward,
            exclude=self.module.parameters(),
            also=(lambda y: [y]) if with_next_layer else (lambda y: []),
        )

    def errors(self) -> dict[str, Any]:
        """See ``errors_against_float64``; stochastic activations in evaluation mode."""
        stochastic = resolve_activation(self.name).stochastic or getattr(self.module, "stochastic", False)
        self.module.train(not stochastic)
        try:
            found = errors_against_float64(self.function, self.module, self.x, self.grad)
        finally:
            self.module.train()
        return found | {"mode": "evaluation" if stochastic else "training"}


def measure(size: HiddenSize, dtype: str, mode: str, options: Options, say: Say) -> Comparison:
    """Compare all activations on one size, dtype and mode.

    Raises:
        OutOfTime: the deadline came first.
        UsageError: an activation cannot run this way.
    """
    labels = labels_of(size, dtype, mode)
    clock = device_clock(options.device, ahead=True)
    referee = Referee(options, clock, mode)
    subjects: dict[str, Subject] = {}
    for name in options.activations:
        if options.deadline():
            raise OutOfTime
        if mode == COMPILED:
            say(f"{title(labels)}: compiling {name}")
        subjects[name] = subject = Subject(name, size, dtype, options.device, mode)
        if subject.compilation is not None:
            referee.notes += check_compiled(name, subject.compilation, empty=subject.aliases)
    exact = {name: (s.errors(), s.kept(False), s.kept(True)) for name, s in subjects.items()}
    plain = torch.randn(size.shape, device=options.device).to(DTYPES[dtype])
    say(f"{title(labels)}: timing")
    forward = {n: Competitor(s.forward) for n, s in subjects.items()}
    times = {
        # The copy takes turns with the rest: a bandwidth of another minute is no yardstick.
        "forward": referee.time("forward", forward | {COPY: Competitor(plain.clone)}),
        "backward": referee.time(
            "backward", {n: Competitor(s.backward, s.forward) for n, s in subjects.items()}
        ),
        "both": referee.time("both", {n: Competitor(s.both) for n, s in subjects.items()}),
    }
    copy_rate = 2 * plain.nbytes / figures(times["forward"], COPY, COPY)["seconds"]["median"]
    rows = []
    for name, subject in subjects.items():
        row: dict[str, Any] = {"activation": name}
        for what in PASSES:
            found = figures(times[what], name, options.baseline)
            nominal = subject.nominal_bytes[what]
            rate = nominal / found["seconds"]["median"] if nominal else None
            row[what] = found | {
                "bytes_per_second": rate,
                "share_of_copy": rate / copy_rate if rate is not None else None,
            }
        errors, kept, kept_in_mlp = exact[name]
        row |= {"kept_bytes": kept, "kept_in_mlp_bytes": kept_in_mlp, "error": errors}
        row["compile"] = subject.compilation._asdict() if subject.compilation else None
        rows.append(row)
    labels["copy_bytes_per_second"] = copy_rate
    return Comparison(labels, PASSES, rows, times, referee.alone(), referee.notes)


def labels_of(size: HiddenSize, dtype: str, mode: str) -> dict[str, Any]:
    """What the rows of a comparison have in common."""
    batch, tokens, hidden = size.shape
    return {
        "size": size.label,
        "batch": batch,
        "tokens": tokens,
        "hidden": hidden,
        "dtype": dtype,
        "mode": mode,
    }


def comparisons(
    sizes: Sequence[HiddenSize], options: Options, say: Say
) -> Iterator[tuple[dict[str, Any], Comparison | None]]:
    """All comparisons, each with its labels; None for those that the deadline left out."""
    for size in sizes:
        for dtype in options.dtypes:
            for mode in options.modes:
                try:
                    found = measure(size, dtype, mode, options, say)
                except OutOfTime:
                    found = None
                yield labels_of(size, dtype, mode), found
