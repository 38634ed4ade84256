"""Training step and inference of one ViT, ours against timm, torchvision, vit-pytorch and transformers.

usage: python benchmarks/training_step.py [OPTIONS]

A training step is forward, cross-entropy, backward, fused AdamW, zero_grad; the input lies on the device.
All models have the same weights (equal logits are checked first), except vit-pytorch's, whose architecture
differs a little: the table says how. All are timed in one run, in turn, in an order that rotates. The last
column is images/s of ours over images/s of theirs, paired by round, median and 95 % interval: above 1, ours
is faster. Ours computes attention as its training would, by the kernel that was measured to be fastest for the
case; the others as their libraries do. Shares of the peak count the arithmetic that is done: ours leaves out
the last block for all tokens but the class token.

  --name SIZE                vit_tiny (default), vit_small, vit_base, vit_large, vit_huge
  --image_size N             32        --patch_size N   4
  --num_classes N            10        --batch N        128
  --embed_dim N --depth N --num_heads N    other than the size's own
  --peers NAME ...           timm torchvision vit-pytorch transformers (default: all)
  --precision P ...          float32 bf16 (autocast) (default: both)
  --mode M ...               eager compiled (default: both)
  --phase P ...              train inference (default: both)
  --rounds N                 12        --min_seconds X  0.2, of one timed block
  --time_limit S             stop after S seconds: what there was no time for is listed
  --device D                 auto, cpu or cuda         --threads N    CPU threads
  --out FILE.json            write a result file
"""

import argparse
import functools
import itertools
import math
import sys
from typing import Any

import checkout  # noqa: F401
import torch
import torch.nn.functional as F
from peers import PEERS, Peer, build_peer
from report import Options, choose_device, describe, heading, run_script, save, table
from rotation import Case, Ratio, paired_ratio, quartiles, time_in_rotation

from vit_gelu.bench.subject import fastest_attention
from vit_gelu.cli.arguments import at_least, one_of
from vit_gelu.compile_cache import key_cache
from vit_gelu.models import VIT_SIZES, VisionTransformer, build_vit
from vit_gelu.training.compilation import compile_options, compiled_graphs
from vit_gelu.training.exclusivity import Exclusivity
from vit_gelu.training.flops import flops_of
from vit_gelu.training.peak import device_peak

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}
MODES = ("eager", "compiled")
PHASES = ("train", "inference")


def options() -> Options:
    parser = Options("training_step")
    parser.add_argument("--name", default="vit_tiny", type=one_of("model", list(VIT_SIZES)))
    for option, default in {"image_size": 32, "patch_size": 4, "num_classes": 10, "batch": 128}.items():
        parser.add_argument(f"--{option}", type=at_least(1), default=default)
    for option in ("embed_dim", "depth", "num_heads"):
        parser.add_argument(f"--{option}", type=at_least(1))
    for option, choices in {"peers": PEERS, "precision": PRECISIONS, "mode": MODES, "phase": PHASES}.items():
        parser.add_argument(
            f"--{option}", nargs="+", type=one_of(option, list(choices)), default=list(choices)
        )
    parser.add_argument("--rounds", type=at_least(1), default=12)
    parser.add_argument("--min_seconds", type=float, default=0.2)
    parser.add_argument("--time_limit", type=float, default=math.inf)
    return parser


def build_ours(asked: argparse.Namespace) -> VisionTransformer:
    """Our model, its weights moved off their initial values so that equal logits mean something."""
    given = {k: getattr(asked, k) for k in ("embed_dim", "depth", "num_heads") if getattr(asked, k)}
    sizes = {k: getattr(asked, k) for k in ("image_size", "patch_size", "num_classes")}
    net = build_vit(asked.name, **sizes, **given, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return net


def arithmetic(net: VisionTransformer, image_shape: tuple[int, int, int]) -> dict[str, dict[str, int]]:
    """Floating-point operations of one image by model and phase (a multiply-add is two).

    The peers compute the last block for all tokens.
    """
    image = torch.zeros(1, *image_shape)
    ways = {"ours": lambda: net(image), "peers": lambda: net.forward_head(net.forward_features(image))}
    return {
        name: {phase: flops_of(net, call, backward=phase == "train") for phase in PHASES}
        for name, call in ways.items()
    }


def steps_of(
    module: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, asked: argparse.Namespace
) -> tuple[dict[tuple[str, str, str], Case], dict[str, str]]:
    """Every (phase, mode, precision) of one model; all share its weights and its optimizer.

    Returns:
        The cases, and the attention kernel of each, by its name with slashes, if the model is ours.
    """
    kernels: dict[str, str] = {}
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    compiled = module
    if "compiled" in asked.mode:
        ours = isinstance(module, VisionTransformer)
        key_cache(module)
        compiled = torch.compile(module, options=compile_options(images.device.type) if ours else None)

    def autocast(precision: str) -> torch.autocast:
        return torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")

    def train(net: Any, precision: str) -> None:
        with autocast(precision):
            logits = net(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def infer(net: Any, precision: str) -> None:
        with torch.inference_mode(), autocast(precision):
            net(images)

    def prepare(phase: str, kernel: str | None) -> None:
        module.train(phase == "train")
        if kernel:
            module.use_attention(kernel, kernel)

    cases = {}
    for phase, mode, precision in itertools.product(asked.phase, asked.mode, asked.precision):
        net = compiled if mode == "compiled" else module
        step = functools.partial(train if phase == "train" else infer, net, precision)
        kernel = None
        if isinstance(module, VisionTransformer):
            name = {"float32": "32-true", "bf16": "bf16-mixed"}[precision]
            compiling = mode == "compiled"
            found = fastest_attention(module, asked.batch, name, compiled=compiling, device=images.device)
            kernel = found[phase]
            kernels[f"{phase}/{precision}/{mode}"] = kernel
        if mode == "compiled":
            step = _checked(step)
        ready = functools.partial(prepare, phase, kernel)
        cases[phase, mode, precision] = Case(step, asked.batch, ready)
    return cases, kernels


def _checked(step: Any) -> Any:
    """The step, whose first call must have compiled something: else its row would be eager code's."""
    before = -1

    def run() -> None:
        nonlocal before
        first = before < 0
        if first:
            before = compiled_graphs()
        step()
        if first and compiled_graphs() == before:
            raise RuntimeError("torch.compile compiled nothing")

    return run


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Build, check, time: the content of the result file."""
    device = choose_device(asked.device)
    ours = build_ours(asked)
    peers = {"ours": Peer(ours, 0.0)} | {name: build_peer(name, ours) for name in dict.fromkeys(asked.peers)}
    shape = (ours.config["in_channels"], *ours.config["image_size"])
    flops = arithmetic(ours, shape)
    images = torch.randn(asked.batch, *shape, device=device)
    labels = torch.randint(asked.num_classes, (asked.batch,), device=device)

    exclusive = Exclusivity(device)
    peak = {p: device_peak(device, PRECISIONS[p]) for p in asked.precision}
    cases, kernels = {}, {}
    for name, peer in peers.items():
        its_cases, its_kernels = steps_of(peer.module.to(device), images, labels, asked)
        cases |= {(name, *key): case for key, case in its_cases.items()}
        kernels |= its_kernels
    named = {"/".join(key): case for key, case in cases.items()}
    timings = time_in_rotation(
        named, rounds=asked.rounds, device=device, min_seconds=asked.min_seconds, time_limit=asked.time_limit
    )
    peak = {p: max(value, device_peak(device, PRECISIONS[p])) for p, value in peak.items()}

    rows = []
    for phase, precision, mode, name in itertools.product(asked.phase, asked.precision, asked.mode, peers):
        seconds = timings.seconds.get("/".join((name, phase, mode, precision)))
        if seconds is None:
            continue
        mine = timings.seconds.get("/".join(("ours", phase, mode, precision)))
        low, median, high = quartiles(seconds)
        done = flops["ours" if name == "ours" else "peers"]
        row: dict[str, Any] = {"phase": phase, "precision": precision, "mode": mode, "model": name}
        row |= {"n": len(seconds), "step_ms": median * asked.batch * 1e3}
        row |= {"step_ms_quartiles": [low * asked.batch * 1e3, high * asked.batch * 1e3]}
        row |= {"images_per_second": 1 / median, "share_of_peak": done[phase] / median / peak[precision]}
        row |= {"ours_over_peer": None}
        if mine and name != "ours":
            row["ours_over_peer"] = paired_ratio(seconds, mine)._asdict()
        rows.append(row)
    return {
        **describe("training_step", asked, device),
        "exclusive": exclusive.check(),
        "model": {k: ours.config[k] for k in ("image_size", "patch_size", "embed_dim", "depth", "num_heads")},
        "batch": asked.batch,
        "attention": kernels,
        "models": {
            name: {
                "parameters": sum(p.numel() for p in peer.module.parameters()),
                "same_weights": peer.logit_error is not None,
                "logit_error": peer.logit_error,
                "differs": peer.note,
            }
            for name, peer in peers.items()
        },
        "flops_per_image": flops,
        "matmul_peak_flops": peak,
        "rows": rows,
        "left_out": timings.left_out,
    }


def show(result: dict[str, Any]) -> None:
    """Print the tables, one for each phase, precision and mode: what may be compared stands together."""
    print(heading(result, result["exclusive"]))
    print(f"{result['model']}, batch {result['batch']}")
    for precision, peak in result["matmul_peak_flops"].items():
        print(f"matrix product peak beside {precision}: {peak / 1e12:.3g} TFLOP/s")
    print("ours computes attention by: " + ", ".join(f"{k} ({v})" for k, v in result["attention"].items()))
    for name, model in result["models"].items():
        if name != "ours":
            error = model["logit_error"]
            same = (
                f"its own weights: {model['differs']}"
                if error is None
                else f"our weights: logits {error:.1g} off"
            )
            print(f"{name}, {model['parameters']:,} parameters: {same}")
    for (phase, precision, mode), rows in itertools.groupby(
        result["rows"], key=lambda r: (r["phase"], r["precision"], r["mode"])
    ):
        print(f"\n{phase}, {precision}, {mode}\n")
        lines = []
        for r in rows:
            ratio = r["ours_over_peer"]
            low, high = r["step_ms_quartiles"]
            lines.append(
                [
                    r["model"],
                    f"{r['step_ms']:.4g}",
                    f"{low:.4g} - {high:.4g}",
                    f"{r['images_per_second']:,.0f}",
                    f"{100 * r['share_of_peak']:.1f} %",
                    "" if ratio is None else str(Ratio(**ratio)),
                    r["n"],
                ]
            )
        print(table(["model", "ms", "quartiles", "images/s", "of peak", "ours / peer [95 %]", "n"], lines))
    if result["left_out"]:
        print(f"\nleft out, no time within --time_limit: {', '.join(result['left_out'])}")


def run(asked: argparse.Namespace) -> int:
    result = measure(asked)
    show(result)
    save(asked.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(run_script("training_step", __doc__, options(), run))
