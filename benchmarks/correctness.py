"""Does this device compute the right thing? Activations and a ViT against float64 on the CPU.

usage: python benchmarks/correctness.py [OPTIONS]

Every activation: output, gradient of the input, gradients of learned parameters. The ViT: logits and the
gradients of all parameters, attention written out and fused. In float32, bf16 and fp16, eager and compiled.
Stochastic activations are compared in evaluation, where they are functions. An error is given in units of what
the dtype allows: above 1 is wrong. Exit status 1 where anything is.

  --dtypes D ...          float32 bf16 fp16 (default: all)
  --mode M ...            eager compiled (default: both)
  --activations NAME ...  (default: all)
  --time_limit S          start no check after S seconds: what was left out is listed
  --device D              auto, cpu or cuda       --threads N    CPU threads
  --out FILE.json         write a result file
"""

import argparse
import contextlib
import copy
import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import checkout  # noqa: F401
import torch
import torch.nn.functional as F
from report import Options, choose_device, describe, heading, run_script, save, table
from torch import Tensor, nn

from vit_gelu.activations import ACTIVATIONS, build_activation
from vit_gelu.cli.arguments import one_of
from vit_gelu.cli.errors import FAILED, UsageError
from vit_gelu.compile_cache import key_cache
from vit_gelu.models import VisionTransformer
from vit_gelu.training.compilation import compile_options, compiled_graphs

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MODES = ("eager", "compiled")
# Elementwise, in units of the dtype's epsilon times the value; what cancels may leave float32 errors of its parts.
ULPS, CANCELLATION = 4, 16 * torch.finfo(torch.float32).eps
# Of a whole network with autocast, in norm, relative: logits and gradients.
NETWORK = {"float32": (1e-5, 1e-4), "bf16": (0.03, 0.06), "fp16": (0.004, 0.01)}
LOSS_SCALE = 1024.0  # fp16 gradients would underflow; a GradScaler does the same
SIDE, PATCH, CLASSES, BATCH = 16, 4, 10, 8


def options() -> Options:
    parser = Options("correctness")
    parser.add_argument("--dtypes", nargs="+", type=one_of("dtype", list(DTYPES)), default=list(DTYPES))
    parser.add_argument("--mode", nargs="+", type=one_of("mode", MODES), default=list(MODES))
    names = list(ACTIVATIONS)
    parser.add_argument("--activations", nargs="+", type=one_of("activation", names), default=names)
    parser.add_argument("--time_limit", type=float, default=math.inf)
    return parser


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32, which convolutions use by default: it is not what a float32 tolerance is for."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


Row = dict[str, Any]
Results = dict[str, list[Tensor]]  # for each activation: output, gradient of the input, of each parameter


class Each(nn.Module):
    """All activations side by side, each with an input of its own: one graph to compile.

    Args:
        names: of the activations.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.acts = nn.ModuleDict({name: build_activation(name) for name in names})

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        return [act(x) for act, x in zip(self.acts.values(), inputs, strict=True)]


def activation_results(
    each: Each, call: Callable[[list[Tensor]], list[Tensor]], x: Tensor, upstream: Tensor
) -> Results:
    """Outputs and gradients of all activations at ``x`` (rows, 2 h) with gradients ``upstream`` from above."""
    inputs = [x.clone().requires_grad_() for _ in each.acts]
    outputs = call(inputs)
    each.zero_grad()
    torch.autograd.backward(outputs, [upstream[:, : y.shape[1]].contiguous() for y in outputs])
    results = {}
    for (name, act), given, y in zip(each.acts.items(), inputs, outputs, strict=True):
        assert given.grad is not None
        gradients = [given.grad, *(p.grad for p in act.parameters() if p.grad is not None)]
        results[name] = [t.detach().double().cpu() for t in (y, *gradients)]
    return results


def allowed(dtype: torch.dtype, wanted: list[Tensor], upstream: Tensor, x: Tensor) -> list[Tensor]:
    """How far each number of one activation may be off, in the order of ``Results``.

    Args:
        dtype: that it was computed in.
        wanted: output, gradient of the input, gradients of parameters; float64.
        upstream, x: as in ``activation_results``, float64.
    """
    eps = torch.finfo(dtype).eps
    output, gradient, *parameters = wanted
    x, g = x.abs(), upstream.abs()[:, : output.shape[1]]
    if output.shape != x.shape:  # gated: a product of both halves
        first, second = x.chunk(2, dim=1)
        size, x = first * second, (1 + first) * (1 + second)
        g, x = torch.cat([g, g], dim=1), torch.cat([x, x], dim=1)
    else:
        size = x
    bounds = [
        ULPS * eps * output.abs() + CANCELLATION * size,
        # Some backward passes start from the rounded output, tanh's for one.
        ULPS * eps * gradient.abs() + CANCELLATION * g * (1 + x) + 2 * eps * g,
    ]
    # A parameter's gradient is a sum over all elements, whose rounding errors partly cancel.
    sums = [ULPS * eps * (p.abs() + upstream.norm() * x.max()) for p in parameters]
    return [bound + torch.finfo(dtype).tiny for bound in (*bounds, *sums)]


def check_activations(names: list[str], dtype_name: str, mode: str, device: torch.device) -> list[Row]:
    """One row per activation: the worst error over what is allowed."""
    generator = torch.Generator().manual_seed(0)
    sweep = torch.linspace(-9, 9, 64 * 128, dtype=torch.float64)
    dtype = DTYPES[dtype_name]
    # The reference starts from the rounded numbers, so that only the computing is judged.
    x = sweep[torch.randperm(len(sweep), generator=generator)].view(64, 128).to(dtype)
    upstream = torch.randn(64, 128, dtype=torch.float64, generator=generator).to(dtype)
    each = Each(names).eval().to(dtype)
    exact = copy.deepcopy(each).double()
    wanted = activation_results(exact, exact, x.double(), upstream.double())
    there = each.to(device)
    graphs = compiled_graphs()
    key_cache(there)
    call = torch.compile(there) if mode == "compiled" else there
    found = activation_results(there, call, x.to(device), upstream.to(device))
    _expect_graphs(mode, graphs)
    rows = []
    for name, references in wanted.items():
        bounds = allowed(dtype, references, upstream.double(), x.double())
        worst = max(map(_worst, found[name], references, bounds))
        rows.append({"what": name, "dtype": dtype_name, "mode": mode, "error": worst})
    return rows


def _expect_graphs(mode: str, before: int) -> None:
    if mode == "compiled" and compiled_graphs() == before:
        raise RuntimeError("torch.compile compiled nothing")


def _worst(found: Tensor, wanted: Tensor, bound: Tensor) -> float:
    if not bool(found.isfinite().all()):
        return float("inf")
    return float(((found - wanted).abs() / bound).max())


def vit(attention: str) -> VisionTransformer:
    """A small ViT whose weights are large enough that every part of it shows in the logits."""
    net = VisionTransformer(
        SIDE, PATCH, num_classes=CLASSES, embed_dim=64, depth=4, num_heads=2, attention=attention, seed=0
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return net


def network_results(
    net: nn.Module, call: Any, images: Tensor, labels: Tensor, autocast: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """Logits, and the gradients of all parameters in one vector; both float64 on the CPU."""
    net.zero_grad()
    scale = LOSS_SCALE if autocast is torch.float16 else 1.0
    with torch.autocast(images.device.type, dtype=autocast, enabled=autocast is not None):
        logits = call(images)
    loss = F.cross_entropy(logits if logits.dtype is torch.float64 else logits.float(), labels)
    (scale * loss).backward()
    gradients = [p.grad.double().cpu().flatten() / scale for p in net.parameters() if p.grad is not None]
    return logits.detach().double().cpu(), torch.cat(gradients)


def check_network(attention: str, dtype_name: str, mode: str, device: torch.device) -> list[Row]:
    """One row: the worse of the logits' and the gradients' relative error, over what is allowed."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator)
    labels = torch.arange(BATCH) % CLASSES
    exact = vit("explicit").double()
    wanted = network_results(exact, exact, images.double(), labels, None)
    net = vit(attention).to(device)
    graphs = compiled_graphs()
    key_cache(net)
    call = torch.compile(net, options=compile_options(device.type)) if mode == "compiled" else net
    autocast = None if dtype_name == "float32" else DTYPES[dtype_name]
    found = network_results(net, call, images.to(device), labels.to(device), autocast)
    _expect_graphs(mode, graphs)
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]
    if not all(bool(t.isfinite().all()) for t in found):
        errors = [float("inf")] * 2
    ratio = max(e / limit for e, limit in zip(errors, NETWORK[dtype_name], strict=True))
    row: Row = {"what": f"ViT, attention {attention}", "dtype": dtype_name, "mode": mode, "error": ratio}
    return [{**row, "logits": errors[0], "gradients": errors[1]}]


def checks(asked: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], list[Row]]]:
    """All checks by name, quick ones first. Compiled: with the attention that is chosen on this device."""
    made: dict[str, Callable[[], list[Row]]] = {}
    for mode, dtype in itertools.product([m for m in MODES if m in asked.mode], asked.dtypes):
        kernels = ("explicit", "sdpa") if mode == "eager" else ("auto",)
        if device.type == "cuda" and dtype != "float32":
            kernels += ("triton",)
        for attention in kernels:
            call = functools.partial(check_network, attention, dtype, mode, device)
            made[f"ViT, attention {attention}, {dtype}, {mode}"] = call
        call = functools.partial(check_activations, asked.activations, dtype, mode, device)
        made[f"activations, {dtype}, {mode}"] = call
    return made


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    device = choose_device(asked.device)
    began = time.monotonic()
    rows: list[Row] = []
    left_out = []
    with exact_float32():
        for name, check in checks(asked, device).items():
            if time.monotonic() - began > asked.time_limit:
                left_out.append(name)
                continue
            print(name, file=sys.stderr, flush=True)
            rows += check()
    for row in rows:  # JSON has no infinity
        row["passed"] = row["error"] <= 1
        row |= {k: None for k, v in row.items() if isinstance(v, float) and v == float("inf")}
    wrong = [f"{r['what']}/{r['dtype']}/{r['mode']}" for r in rows if not r["passed"]]
    description = describe("correctness", asked, device)
    return {**description, "rows": rows, "wrong": wrong, "left_out": left_out}


def show(result: dict[str, Any]) -> None:
    print(heading(result, None))
    print("worst error, as a multiple of what the dtype allows\n")
    columns = list(dict.fromkeys((r["dtype"], r["mode"]) for r in result["rows"]))
    by_name: dict[str, dict[tuple[str, str], float | None]] = {}
    for r in result["rows"]:
        by_name.setdefault(r["what"], {})[r["dtype"], r["mode"]] = r["error"]
    lines = [
        [
            name,
            *(
                "-" if c not in errors else "not finite" if errors[c] is None else f"{errors[c]:.2f}"
                for c in columns
            ),
        ]
        for name, errors in by_name.items()
    ]
    print(table(["what", *(" ".join(c) for c in columns)], lines))
    if result["rows"]:
        print(f"\nwrong: {', '.join(result['wrong'])}" if result["wrong"] else "\nall within tolerance")
    if result["left_out"]:
        print(f"left out, no time within --time_limit: {'; '.join(result['left_out'])}")


def run(asked: argparse.Namespace) -> int:
    if "compiled" in asked.mode and sys.platform == "win32":
        raise UsageError("--mode compiled: torch.compile needs Linux; use --mode eager")
    result = measure(asked)
    show(result)
    save(asked.out, result)
    return FAILED if result["wrong"] or not result["rows"] else 0


if __name__ == "__main__":
    sys.exit(run_script("correctness", __doc__, options(), run))
