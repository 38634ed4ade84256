"""A choice is made once, remembered, and only for what is clearly faster."""

import json
import os
import subprocess
import sys

import pytest
import torch

from vit_gelu.models import attention_choice
from vit_gelu.models.attention_choice import Choice, Shape, choose_attention, measure, pick, usable

CPU = torch.device("cpu")
SMALL = Shape(batch=4, tokens=5, heads=2, head_dim=4)


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    monkeypatch.setattr(attention_choice, "_remembered", {})


@pytest.fixture
def measured(monkeypatch):
    """Counts measurements; all of them come to ``strided``."""
    calls = []

    def measure(shape, device):
        calls.append(shape)
        return Choice("strided", {"explicit": 2.0, "strided": 1.0})

    monkeypatch.setattr(attention_choice, "measure", measure)
    return calls


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"b": [0.96] * 8}, "a"),  # faster, but not clearly
        ({"b": [0.94] * 8}, "b"),
        ({"b": [0.9] * 8, "c": [0.8] * 8}, "c"),
        ({"b": [1.1] * 8}, "a"),
        ({"b": [0.5] * 5 + [1.5] * 3}, "a"),  # one busy spell of the machine
        ({}, "a"),
    ],
)
def test_pick(times, expected):
    assert pick({"a": [1.0] * 8, **times}, "a") == expected


def test_what_slows_a_whole_round_decides_nothing():
    load = [1.0, 10.0, 3.0, 1.0, 7.0, 2.0, 1.0, 9.0]
    assert pick({"a": load, "b": [0.9 * x for x in load]}, "a") == "b"
    assert pick({"a": load, "b": [0.98 * x for x in load]}, "a") == "a"


class Timeline:
    """A processor that launches and a GPU that computes what has been launched, in seconds."""

    def __init__(self, monkeypatch, launch, kernel):
        self.host = self.gpu = 0.0
        self.launch, self.kernel = launch, kernel
        timeline = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = max(timeline.host, timeline.gpu)

            def query(self):
                return timeline.host >= self.at

            def synchronize(self):
                timeline.synchronize()

            def elapsed_time(self, end):
                return 1e3 * (end.at - self.at)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.compute(cycles / 2e9))

    def synchronize(self, device=None):
        self.host = max(self.host, self.gpu)

    def compute(self, seconds):
        self.gpu = max(self.host, self.gpu) + seconds

    def call(self):
        self.host += self.launch
        self.compute(self.kernel)


@pytest.mark.parametrize("launch", [1e-5, 1e-3, 5e-3])
def test_kernels_are_timed_and_not_their_launches(monkeypatch, launch):
    """A slow processor takes longer to launch ten calls than the pause in which it should."""
    gpu = torch.device("cuda")
    timeline = Timeline(monkeypatch, launch, kernel=5e-5)
    assert attention_choice._seconds(timeline.call, gpu, queued=True) == pytest.approx(5e-5)
    # Eager networks pay for the launches.
    assert attention_choice._seconds(timeline.call, gpu, queued=False) == pytest.approx(
        max(5e-5, launch), rel=0.2
    )


def test_measuring_is_real_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    choice = measure(SMALL, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(choice.measured_ms) == {"explicit", "matmul", "strided", "flash"}
    assert all(ms > 0 for ms in choice.measured_ms.values())
    assert choice.kernel in choice.measured_ms


@pytest.mark.parametrize("training", [True, False])
def test_the_fastest_wins(monkeypatch, training):
    costs = {"explicit": 3.0, "matmul": 2.0, "strided": 1.0, "flash": 1.5}
    monkeypatch.setattr(attention_choice, "_call", lambda name, *args, **kwargs: lambda: None)
    names = iter(list(costs) * 9)
    monkeypatch.setattr(attention_choice, "_seconds", lambda call, device, queued: costs[next(names)])
    choice = measure(Shape(4, 5, 2, 4, training=training), CPU)
    assert choice == Choice("strided", {name: 1e3 * s for name, s in costs.items()})


def test_what_cannot_run_is_no_candidate(monkeypatch):
    def fails(qkv, dropout):
        raise RuntimeError("no such back end")

    monkeypatch.setitem(attention_choice.KERNELS, "flash", fails)
    assert "flash" not in measure(SMALL, CPU).measured_ms
    assert not usable("flash", SMALL, CPU)
    assert not usable("cudnn", SMALL, CPU)
    assert usable("strided", SMALL, CPU)


def test_dropout_leaves_out_what_has_none():
    assert "strided" in SMALL.candidates()
    assert "strided" not in Shape(4, 5, 2, 4, dropout=True).candidates()


def test_the_default_comes_first():
    assert Shape(4, 65, 3, 64).candidates()[0] == "explicit"
    assert Shape(4, 1000, 3, 64).candidates()[0] == "sdpa"
    assert Shape(4, 65, 3, 64, device="cuda").candidates()[0] == "sdpa"
    assert Shape(4, 65, 3, 64, device="mps").candidates() == ["sdpa"]


def test_batches_are_classed_and_bounded():
    assert Shape(100, 17, 2, 8).measured_batch == Shape(128, 17, 2, 8).measured_batch == 128
    assert Shape(1024, 1025, 16, 64).measured_batch == 1


def test_remembered_in_memory_and_on_disk(tmp_path, measured, monkeypatch):
    first = choose_attention(SMALL, CPU, folder=tmp_path)
    assert (
        choose_attention(SMALL, CPU, folder=tmp_path)
        == first
        == Choice("strided", {"explicit": 2.0, "strided": 1.0})
    )
    monkeypatch.setattr(attention_choice, "_remembered", {})  # another process
    assert choose_attention(SMALL, CPU, folder=tmp_path) == first
    assert len(measured) == 1


@pytest.mark.parametrize(
    "other",
    [
        Shape(64, 5, 2, 4),
        Shape(4, 6, 2, 4),
        Shape(4, 5, 1, 4),
        Shape(4, 5, 2, 8),
        Shape(4, 5, 2, 4, dtype="float64"),
        Shape(4, 5, 2, 4, dtype="bfloat16", autocast=True),
        Shape(4, 5, 2, 4, compiled=True),
        Shape(4, 5, 2, 4, training=False),
        Shape(4, 5, 2, 4, dropout=True),
    ],
)
def test_every_part_of_the_shape_counts(tmp_path, measured, other):
    choose_attention(SMALL, CPU, folder=tmp_path)
    choose_attention(other, CPU, folder=tmp_path)
    assert measured == [SMALL, other]


def test_another_torch_measures_anew(tmp_path, measured, monkeypatch):
    choose_attention(SMALL, CPU, folder=tmp_path)
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    choose_attention(SMALL, CPU, folder=tmp_path)
    assert len(measured) == 2


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        '{"for": {}, "kernel": "strided", "measured_ms": {}}',
        "\x00\xff",
    ],
)
def test_a_broken_file_is_made_anew(tmp_path, measured, monkeypatch, damage):
    choose_attention(SMALL, CPU, folder=tmp_path)
    (file,) = tmp_path.glob("*.json")
    whole = file.read_text()
    file.write_text(damage)
    monkeypatch.setattr(attention_choice, "_remembered", {})
    assert choose_attention(SMALL, CPU, folder=tmp_path).kernel == "strided"
    assert len(measured) == 2
    assert file.read_text() == whole
    assert not list(tmp_path.glob("*.partial"))


def test_a_kernel_of_another_version_is_not_trusted(tmp_path, measured, monkeypatch):
    choose_attention(SMALL, CPU, folder=tmp_path)
    (file,) = tmp_path.glob("*.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "kernel": "newer"}))
    monkeypatch.setattr(attention_choice, "_remembered", {})
    assert choose_attention(SMALL, CPU, folder=tmp_path).kernel == "strided"


def test_what_cannot_be_remembered_is_not_measured(tmp_path, measured):
    (tmp_path / "file").write_text("")
    assert choose_attention(SMALL, CPU, folder=tmp_path / "file" / "folder") == Choice("explicit")
    assert not measured


def test_two_processes_that_start_together_agree(tmp_path):
    code = (
        "import torch; from pathlib import Path; import vit_gelu.models.attention_choice as a, os, random, time\n"
        "def measure(shape, device):\n"
        "    time.sleep(0.5)\n"
        "    return a.Choice(random.choice(['strided', 'flash', 'matmul']), {'pid': float(os.getpid())})\n"
        "a.measure = measure\n"
        f"print(a.choose_attention(a.Shape(4, 5, 2, 4), torch.device('cpu'), folder=Path({str(tmp_path)!r})))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ)
        for _ in range(2)
    ]
    answers = {process.communicate(timeout=120)[0] for process in started}
    assert len(answers) == 1
    assert b"pid" in answers.pop()
