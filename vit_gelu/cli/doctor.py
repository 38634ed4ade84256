"""``vit-gelu doctor``: is everything there that training needs, and if not, what is to be done?"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from vit_gelu.cli.arguments import Arguments, wants_help
from vit_gelu.cli.findings import OK, PROBLEM, WARNING, Finding
from vit_gelu.cli.machine import (
    check_compiler,
    check_processor,
    check_room,
    check_shared_memory,
    nvidia_driver,
    nvidia_hardware,
    system,
)
from vit_gelu.cli.packages import check_packages, check_python, find_malware, own_metadata

HELP = """usage: vit-gelu doctor [OPTIONS]

Look at Python, the packages, the devices, the compiler and the data, and say what to do about
what is not as it should be. Exit status 1 if there is a problem.

options:
  --data.root DIR          look for data sets there (default: $VIT_GELU_DATA, else the cache folder)
  --compile                really compile a function with torch.compile (up to a minute)
  --json                   one JSON document in place of the table

examples:
  vit-gelu doctor
  vit-gelu doctor --data.root ~/data --compile
"""

PROBE_SECONDS = 120
COMPILE_SECONDS = 300
COLOURS = {OK: "32", WARNING: "33", PROBLEM: "31"}


def main(argv: list[str]) -> int:
    """Run the command; returns 1 where there is a problem, else 0."""
    if wants_help(argv):
        print(HELP, end="")
        return 0
    options = _parser().parse_args(argv)
    findings = examine(options.data_root, options.compile)
    problems = sum(f.status == PROBLEM for f in findings)
    if options.json:
        print(json.dumps({"problems": problems, "findings": [vars(f) for f in findings]}, indent=1))
    else:
        print_findings(findings)
    return 1 if problems else 0


def _parser() -> Arguments:
    parser = Arguments("doctor")
    parser.add_argument("--data.root", dest="data_root")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser


def examine(root: str | None = None, compile: bool = False) -> list[Finding]:
    """All findings.

    Args:
        root: folder of the data sets; None means the default one.
        compile: whether to try torch.compile.
    """
    findings = [system(), *_check_installation()]
    malware = find_malware()
    # Our data room may import lightning, and malware must not be imported.
    facts, died = probe(root, look_at_data=not malware, compile=compile)
    torch = facts.get("torch", {"error": died})
    findings += check_torch(torch, facts.get("torchvision", {"error": died}))
    has_gpu = bool(torch.get("gpus"))
    if "error" not in torch:
        findings += check_gpus(torch)
    findings.append(check_processor(torch.get("threads"), has_gpu))
    findings.append(check_compiler())
    if compile and "error" not in torch:
        findings.append(check_compiled(facts.get("compile", {"error": died})))
    if malware:
        findings.append(Finding("data", WARNING, "not looked for", f"first remove {malware[0]}"))
    else:
        findings += check_data(facts.get("data", {"error": died}), explicit=root is not None)
    findings.append(check_room("runs", Path("runs").absolute(), needed=False))
    return findings + check_shared_memory()


def _check_installation() -> list[Finding]:
    try:
        import packaging  # noqa: F401
    except ImportError as error:
        return [Finding("packages", PROBLEM, str(error), "python -m pip install packaging")]
    python, requirements = own_metadata()
    return [check_python(python), *check_packages(requirements)]


def probe(root: str | None, *, look_at_data: bool, compile: bool) -> tuple[dict[str, Any], str]:
    """Run ``probe.py`` with this Python.

    Returns:
        The facts per step, and how the process ended, for the steps that it did not come to.
    """
    script = Path(__file__).with_name("probe.py")
    package = str(script.parents[2]) if look_at_data else None
    asked = json.dumps({"root": root, "package": package, "compile": compile})
    # -P: our own file names must not stand in for modules of the same name.
    command = [sys.executable, "-P", str(script), asked]
    limit = COMPILE_SECONDS if compile else PROBE_SECONDS
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        output, last = done.stdout, (done.stderr.strip().splitlines() or [""])[-1]
        died = f"the process ended with status {done.returncode} {last}".strip()
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout.decode() if isinstance(expired.stdout, bytes) else expired.stdout or ""
        died = f"did not answer within {limit} s"
    facts: dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith("{"):
            facts |= json.loads(line)
    return facts, died


def check_torch(torch: dict[str, Any], torchvision: dict[str, Any]) -> list[Finding]:
    """Whether torch and torchvision can be imported, together."""
    again = "python -m pip install --force-reinstall torch torchvision"
    if "error" in torch:
        return [Finding("torch", PROBLEM, f"cannot be imported: {torch['error']}", again)]
    findings = [Finding("torch", OK, f"{torch['version']}, built for {_build(torch)}")]
    if torch["numpy"] is not None:
        advice = "python -m pip install --upgrade torch numpy"
        findings.append(Finding("torch, numpy", PROBLEM, f"do not fit: {torch['numpy']}", advice))
    if "error" in torchvision:
        found = f"does not work with torch {torch['version']}: {torchvision['error']}"
        findings.append(Finding("torchvision", PROBLEM, found, again + " (both from one index)"))
    return findings


def _build(torch: dict[str, Any]) -> str:
    if torch["cuda_build"]:
        return f"CUDA {torch['cuda_build']}"
    return f"ROCm {torch['hip_build']}" if torch["hip_build"] else "the CPU"


def check_gpus(torch: dict[str, Any]) -> list[Finding]:
    """Whether the GPUs that are there can be used."""
    if torch["gpus"]:
        return [_check_gpu(i, gpu, torch) for i, gpu in enumerate(torch["gpus"])]
    if torch["mps"]:
        return [Finding("GPU", OK, "Apple's, through MPS")]
    driver = nvidia_driver()
    if driver is None and not nvidia_hardware():
        return [Finding("GPU", OK, "none; training runs on the CPU")]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and driver is not None and torch["cuda_build"]:
        found = f"hidden by CUDA_VISIBLE_DEVICES={hidden!r}"
        return [Finding("GPU", WARNING, found, "unset CUDA_VISIBLE_DEVICES to use it")]
    if driver is None:
        return [Finding("GPU", PROBLEM, "an NVIDIA GPU without a working driver", "install NVIDIA's driver")]
    if not torch["cuda_build"]:
        found = f"an NVIDIA GPU (driver {driver}), but this torch is built without CUDA"
        advice = (
            "python -m pip uninstall -y torch torchvision; install those of pytorch.org/get-started for CUDA"
        )
        return [Finding("GPU", PROBLEM, found, advice)]
    reason = torch["warnings"][0][:200] if torch["warnings"] else "torch does not say why"
    found = f"driver {driver} and torch for CUDA {torch['cuda_build']} do not work together: {reason}"
    return [Finding("GPU", PROBLEM, found, "update the driver, or install torch built for an older CUDA")]


def _check_gpu(index: int, gpu: dict[str, Any], torch: dict[str, Any]) -> Finding:
    found = f"{gpu['name']}, {gpu['memory'] / 2**30:.0f} GiB, compute capability {gpu['capability']}"
    if gpu["error"] is not None:
        advice = "install a torch that is built for this GPU (pytorch.org/get-started), or update the driver"
        return Finding(f"cuda:{index}", PROBLEM, f"{found}: fails: {gpu['error']}", advice)
    found += f", {gpu['free'] / 2**30:.0f} GiB free"
    if gpu["free"] < gpu["memory"] / 2:
        advice = "somebody else uses it (nvidia-smi): speeds will not be comparable"
        return Finding(f"cuda:{index}", WARNING, found, advice)
    return Finding(f"cuda:{index}", OK, found)


def check_compiled(facts: dict[str, Any]) -> Finding:
    """Whether torch.compile compiled a function and got its result right."""
    if "error" in facts:
        advice = "see the compiler above; or train with --model.compile false"
        return Finding("torch.compile", PROBLEM, facts["error"], advice)
    return Finding("torch.compile", OK, ", ".join(f"{d} {s:.0f} s" for d, s in facts["seconds"].items()))


def check_data(facts: dict[str, Any], explicit: bool) -> list[Finding]:
    """Which data sets are there.

    Args:
        facts: see ``probe.look_at_data``.
        explicit: whether the folder was named on the command line.
    """
    if "error" in facts:
        kind, _, words = facts["error"].partition(": ")
        if kind == "ValueError":  # of ours, and says what to do
            return [Finding("data", WARNING, f"not looked for: {words}", "")]
        return [Finding("data", WARNING, f"not looked for: {facts['error']}", "repair torch first")]
    root = Path(facts["root"])
    if explicit and not root.is_dir():
        advice = "name the folder that holds the data, or leave --data.root out"
        return [Finding("data", PROBLEM, f"--data.root {root}: no such folder", advice)]
    findings = []
    for name in facts["names"]:
        data = facts["found"].get(name)
        if data is None:
            advice = "it is downloaded at its first use (170 MB); for slow days: --data.mirror URL"
            findings.append(Finding(name, WARNING, f"not in {root}", advice))
        elif data["problem"]:
            advice = "delete it, and it is downloaded at its next use"
            findings.append(Finding(name, PROBLEM, f"{data['path']} {data['problem']}", advice))
        else:
            findings.append(Finding(name, OK, data["path"]))
    missing = len(facts["found"]) < len(facts["names"])
    return [*findings, check_room("data folder", root, needed=missing)]


def print_findings(findings: list[Finding]) -> None:
    """Print a table; plain text, as even the package for tables may be what is missing."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = max(len(f.name) for f in findings)
    room = max(40, min(110, _columns()) - width - 11)
    for f in findings:
        mark = f"{f.status:<8}"
        mark = f"\033[{COLOURS[f.status]}m{mark}\033[0m" if colour else mark
        lines = textwrap.wrap(f.found, room, break_long_words=False, break_on_hyphens=False)
        for advice in textwrap.wrap(f"-> {f.advice}", room, break_on_hyphens=False) if f.advice else []:
            lines.append(advice)
        print(f"{mark} {f.name:<{width}}  {lines[0]}")
        for line in lines[1:]:
            print(f"{'':<8} {'':<{width}}  {line}")
    counts = {s: sum(f.status == s for f in findings) for s in (PROBLEM, WARNING)}
    summary = [f"{n} {status}{'' if n == 1 else 's'}" for status, n in counts.items()]
    print("\n" + ", ".join(summary))


def _columns() -> int:
    return os.get_terminal_size().columns if sys.stdout.isatty() else 100
