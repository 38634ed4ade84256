"""Where does a training step spend its time? Launching, and the kernels of the device by kind.

usage: python benchmarks/step_profile.py [OPTIONS]

Takes the training step of one ViT apart: milliseconds per step as they pass, those that the processor needs to launch
one, those that the device computes, and what it computes in them. A device that computes for less than passes waits
for the processor: take a larger batch, compile, or replay the step (graphs).

  --size SIZE          Ti/4@32 (default), S/16@224, B/16@224; with a batch: Ti/4@32:256
  --mode M ...         eager compiled graphs autotuned (default: compiled); graphs: compiled, and replayed from a CUDA
                       graph; autotuned: graphs, with products chosen by timing them
  --activation NAME    (default: gelu)                --attention KERNEL   (default: auto, the fastest)
  --optimizer NAME     (default: adamw)
  --model.X V          embed_dim, depth, num_heads, pooling, class_token, patch_dropout, stem, residual_precision
  --steps N            in each figure (default: 20)   --kernels N          to show (default: 12)
  --device D           auto, cpu or cuda              --threads N          CPU threads
  --out FILE.json      write a result file
"""

import argparse
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import checkout  # noqa: F401
import torch
from report import Options, choose_device, describe, heading, run_script, save, table
from torch.autograd import DeviceType

from vit_gelu.bench.compiling import COMPILED, EAGER
from vit_gelu.bench.sizes import SIZES, ModelSize, model_size
from vit_gelu.bench.subject import Subject, Workload, synthetic_batch
from vit_gelu.cli.arguments import at_least, one_of
from vit_gelu.cli.errors import UsageError
from vit_gelu.models.options import ATTENTIONS
from vit_gelu.training.exclusivity import Exclusivity
from vit_gelu.training.step_graph import can_be_recorded

MODES = ("eager", "compiled", "graphs", "autotuned")
REPLAYED = {"graphs", "autotuned"}
# What a kernel's name gives away; the first that is found holds.
KINDS = (
    ("attention", r"flash|fmha|attention|sdpa|_forward$|_backward$"),
    (
        "matrix product",
        r"gemm|gemv|cutlass|cublas|nvjet|sm\d+_xmma|(^|::)(addmm|mm|bmm|baddbmm)|linear_kernel",
    ),
    ("optimizer", r"multi_tensor|fused_adam|foreach"),
    ("copy", r"memcpy|memset|copy_kernel|direct_copy"),
    ("generated", r"triton|cpp_fused"),
)


def boolean(text: str) -> bool:
    """``true`` or ``false``, as on the command line of a training."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, not {text}")
    return text == "true"


def size_of(text: str) -> ModelSize:
    """As ``model_size``, for argparse."""
    try:
        return model_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            str(error).replace("--sizes: ", "").replace("--sizes ", "")
        ) from None


def options() -> Options:
    parser = Options("step_profile")
    parser.add_argument("--size", type=size_of, default=next(iter(SIZES.values())))
    parser.add_argument("--mode", nargs="+", type=one_of("mode", MODES), default=["compiled"])
    parser.add_argument("--activation", default="gelu")
    parser.add_argument("--attention", type=one_of("attention", ATTENTIONS), default="auto")
    parser.add_argument("--optimizer", default="adamw")
    for name in ("embed_dim", "depth", "num_heads"):
        parser.add_argument(f"--model.{name}", type=at_least(1))
    for name in ("pooling", "stem", "residual_precision"):
        parser.add_argument(f"--model.{name}")
    parser.add_argument("--model.class_token", type=boolean)
    parser.add_argument("--model.patch_dropout", type=float)
    parser.add_argument("--steps", type=at_least(1), default=20)
    parser.add_argument("--kernels", type=at_least(1), default=12)
    return parser


def kind(name: str) -> str:
    """What a kernel does, as far as its name says so.

    >>> kind("nvjet_tst_128x256"), kind("triton_poi_fused_gelu_0"), kind("reduce_kernel")
    ('matrix product', 'generated', 'other')
    """
    return next((k for k, pattern in KINDS if re.search(pattern, name)), "other")


def subject(asked: argparse.Namespace, mode: str, device: torch.device) -> Subject:
    """The network, its optimizer and its batch, in bf16; all that is compiled has been compiled."""
    size = asked.size
    overrides = {
        k.removeprefix("model."): v
        for k, v in vars(asked).items()
        if k.startswith("model.") and v is not None
    }
    if asked.attention != "auto":
        overrides["attention"] = asked.attention
    work = Workload(
        label=size.label,
        model=size.model,
        batch=size.batch(device.type),
        image_size=size.image_size,
        patch_size=size.patch_size,
        num_classes=size.num_classes,
        overrides=overrides,
        optimizer=asked.optimizer,
        cuda_graphs=mode in REPLAYED,
        autotune=mode == "autotuned",
    )
    compiled = EAGER if mode == "eager" else COMPILED
    return Subject(asked.activation, work, "bfloat16", compiled, synthetic_batch(work, device))


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def profile(step: Callable[[], Any], device: torch.device, steps: int) -> dict[str, Any]:
    """Milliseconds per step, as they pass and by kernel."""
    step()
    synchronise(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    synchronise(device)
    passed = (time.perf_counter() - began) / steps
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        for _ in range(steps):
            step()
        synchronise(device)
    on_gpu = device.type == "cuda"
    kernels = []
    for event in profiler.key_averages():
        if on_gpu and event.device_type != DeviceType.CUDA:
            continue
        if on_gpu and event.key.startswith(("Optimizer.", "ProfilerStep")):  # a range, not a kernel
            continue
        took = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if took > 0:
            kernels.append({"name": event.key, "calls": event.count / steps, "ms": took / 1e3 / steps})
    kernels.sort(key=lambda k: -k["ms"])
    kinds: dict[str, float] = {}
    for k in kernels:
        kinds[kind(k["name"])] = kinds.get(kind(k["name"]), 0.0) + k["ms"]
    return {
        "step_ms": 1e3 * passed,
        "device_ms": sum(k["ms"] for k in kernels),
        "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1])),
        "kernels": kernels,
    }


def run(asked: argparse.Namespace) -> int:
    device = choose_device(asked.device)
    replayed = next((mode for mode in asked.mode if mode in REPLAYED), None)
    if replayed and device.type != "cuda":
        raise UsageError(f"--mode {replayed}: needs a CUDA GPU; use eager or compiled")
    if replayed and not can_be_recorded(asked.optimizer):
        raise UsageError(
            f"--mode {replayed}: the step of {asked.optimizer} cannot be recorded; take adamw or muon"
        )
    alone = Exclusivity(device)
    rows = []
    for mode in asked.mode:
        torch.compiler.reset()
        try:
            made = subject(asked, mode, device)
        except ValueError as error:
            raise UsageError(str(error)) from error
        found = profile(made.calls["train"], device, asked.steps)
        launch, batch = made.launch_seconds, len(made.images)
        rows.append(
            {"size": asked.size.label, "batch": batch, "mode": mode, "attention": made.attention["train"]}
            | {"images_per_second": 1e3 * batch / found["step_ms"]}
            | {"launch_ms": None if launch is None else 1e3 * launch}
            | found
        )
    description = describe("step_profile", asked, device)
    exclusive = alone.check()
    print(heading(description, exclusive))
    for row in rows:
        show(row, asked.kernels)
    save(asked.out, {**description, "exclusive": exclusive, "rows": rows})
    return 0


def show(row: dict[str, Any], most: int) -> None:
    launch = "" if row["launch_ms"] is None else f", {row['launch_ms']:.2f} ms to launch"
    print(
        f"\n{row['size']}, batch {row['batch']}, {row['mode']}, attention by {row['attention']}: "
        f"{row['step_ms']:.2f} ms a step ({row['images_per_second']:,.0f} images/s){launch}, "
        f"{row['device_ms']:.2f} ms computing"
    )
    print(", ".join(f"{name} {ms:.2f} ms" for name, ms in row["kinds"].items()))
    cells = [[k["name"][:90], f"{k['calls']:g}", f"{k['ms']:.3f}"] for k in row["kernels"][:most]]
    print(table(["kernel", "calls", "ms"], cells))


if __name__ == "__main__":
    sys.exit(run_script("step_profile", __doc__, options(), run))
