"""The GPU's clock; needs one."""

import json

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


@pytest.mark.parametrize("kind", ["activations", "training"])
def test_on_a_gpu(tmp_path, kind):
    argv = [kind, "--device", "cuda:0", "--activations", "gelu", "--rounds", "3", "--compile", "false"]
    assert main([*argv, "--sizes", "Ti/4@32:8", "--out", str(tmp_path / "o")]) == 0
    rows = json.loads((tmp_path / "o" / "bench.json").read_text())["rows"]
    assert [r["dtype"] for r in rows[::2]] == ["float32", "bfloat16", "float16"]
    if kind == "training":
        assert all(r["peak_memory_bytes"] > r["kept_bytes"] for r in rows)
