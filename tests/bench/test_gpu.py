"""The GPU's clock; needs one."""

import json
import subprocess
import sys

import pytest
import torch

from vit_gelu.bench.devices import device_clock
from vit_gelu.bench.timing import Competitor, interleave
from vit_gelu.cli.bench import main

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_the_hosts_time_does_not_count_with_a_head_start():
    """A kernel of a microsecond, launched after 0.2 ms of the host's own work."""
    clock = device_clock(torch.device("cuda", 0), ahead=True)
    x = torch.zeros(8, device="cuda")

    def call():
        sum(range(10_000))
        x.add_(1)

    times = interleave(
        {"a": Competitor(call)}, 5, clock=clock.clock, synchronise=clock.synchronise, calls={"a": 20},
        head_start=clock.head_start,
    )  # fmt: skip
    without = interleave(
        {"a": Competitor(call)}, 5, clock=clock.clock, synchronise=clock.synchronise, calls={"a": 20}
    )
    assert min(times["a"]) < 0.5 * min(without["a"])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_replayed_step_trains(tmp_path, optimizer):
    argv = [
        "training",
        "--device",
        "cuda:0",
        "--activations",
        "gelu",
        "relu",
        "--rounds",
        "3",
        "--compile",
        "false",
    ]
    argv += ["--sizes", "Ti/4@32:8", "--dtypes", "bfloat16", "--cuda_graphs", "true", "--model.depth", "2"]
    assert main([*argv, "--model.optimizer", optimizer, "--out", str(tmp_path / "o")]) == 0
    record = json.loads((tmp_path / "o" / "bench.json").read_text())
    assert all(row["cuda_graphs"] for row in record["rows"])
    assert all(
        row["train"]["seconds"]["median"] > row["inference"]["seconds"]["median"] for row in record["rows"]
    )


def test_a_small_step_is_bound_by_its_launches(tmp_path):
    argv = ["training", "--device", "cuda:0", "--activations", "gelu", "--baseline", "gelu", "--rounds", "3"]
    argv += ["--compile", "false", "--sizes", "Ti/4@32:2", "--dtypes", "bfloat16"]
    for graphs in ("false", "true"):
        out = tmp_path / graphs
        assert main([*argv, "--cuda_graphs", graphs, "--out", str(out)]) == 0
        notes = json.loads((out / "bench.json").read_text())["notes"]
        assert any("the GPU waits for the processor (gelu)" in note for note in notes) == (graphs == "false")


@pytest.mark.parametrize("kind", ["activations", "training"])
def test_on_a_gpu(tmp_path, kind):
    argv = [kind, "--device", "cuda:0", "--activations", "gelu", "--rounds", "3", "--compile", "false"]
    assert main([*argv, "--sizes", "Ti/4@32:8", "--out", str(tmp_path / "o")]) == 0
    rows = json.loads((tmp_path / "o" / "bench.json").read_text())["rows"]
    assert [r["dtype"] for r in rows[::2]] == ["float32", "bfloat16", "float16"]
    if kind == "training":
        assert all(r["peak_memory_bytes"] > r["kept_bytes"] for r in rows)


def test_the_first_competitor_does_not_pay_for_the_librarys_workspaces(tmp_path):
    """In a process of its own: they are taken once. GELU and its tanh form keep equally much."""
    argv = ["training", "--device", "cuda:0", "--activations", "gelu", "gelu_tanh", "--baseline", "gelu"]
    argv += ["--compile", "false", "--sizes", "Ti/4@32:8", "--dtypes", "bfloat16", "--rounds", "2"]
    argv += ["--out", str(tmp_path / "o")]
    command = [sys.executable, "-m", "vit_gelu", "bench", *argv]
    subprocess.run(command, check=True, capture_output=True)
    rows = json.loads((tmp_path / "o" / "bench.json").read_text())["rows"]
    first, second = (row["peak_memory_bytes"] for row in rows)
    assert first == pytest.approx(second, abs=2**20)
