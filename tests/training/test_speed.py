"""Timings that leave out what is not a step; a GPU's own clock."""

import itertools
import time
from types import SimpleNamespace

import pytest
import torch

from tests.training.helpers import train
from vit_gelu.cli.train import print_speed
from vit_gelu.training.exclusivity import Exclusivity
from vit_gelu.training.speed import WARMUP_STEPS, SpeedMeter


class Steps:
    """A trainer that takes steps of known length."""

    def __init__(self):
        self.meter = SpeedMeter()
        self.trainer = SimpleNamespace(world_size=2, global_step=0, log_every_n_steps=1)
        self.module = SimpleNamespace(
            device=torch.device("cpu"),
            last_score=SimpleNamespace(n=100),
            patches_left_out=0.0,
            step_graph=SimpleNamespace(recordings=0),
        )
        self.batch = SimpleNamespace(targets=torch.zeros(4))
        self.meter.on_train_start(self.trainer, self.module)

    def step(self, wait=0.0, work=0.004):
        time.sleep(wait)
        self.meter.on_train_batch_start(self.trainer, self.module, self.batch, 0)
        time.sleep(work)
        self.meter.on_train_batch_end(self.trainer, self.module, None, self.batch, 0)


def test_warm_up_validation_and_saves_are_left_out():
    steps = Steps()
    for _ in range(WARMUP_STEPS):
        steps.step(work=0.0)
    for _ in range(5):
        steps.step(wait=0.004, work=0.012)
    steps.meter.on_validation_start(steps.trainer, steps.module)
    time.sleep(0.05)
    steps.meter.on_validation_end(steps.trainer, steps.module)
    steps.step(work=0.0)  # the gap before it holds the validation
    steps.meter.on_save_checkpoint(steps.trainer, steps.module, {})
    steps.step(work=0.0)
    assert len(steps.meter.step_seconds) == 5
    assert all(0.016 <= s < 0.2 for s in steps.meter.step_seconds)
    assert steps.meter.images_per_second() == pytest.approx(8 * 5 / sum(steps.meter.step_seconds))
    assert steps.meter.wait_seconds / sum(steps.meter.step_seconds) == pytest.approx(0.25, abs=0.12)
    assert 100 / 1.0 < steps.meter.eval_images / steps.meter.eval_seconds <= 100 / 0.05


def test_a_step_that_compiles_is_compile_time(monkeypatch):
    graphs = iter([0, *[0] * WARMUP_STEPS, 0, 1, 1])
    monkeypatch.setattr("vit_gelu.training.speed.compiled_graphs", lambda: next(graphs))
    steps = Steps()
    for _ in range(WARMUP_STEPS + 1):
        steps.step(work=0.0)
    steps.step(work=0.05)
    steps.step(work=0.0)
    assert len(steps.meter.step_seconds) == 2
    assert max(steps.meter.step_seconds) < 0.05
    assert steps.meter.compile_seconds >= 0.05


def test_flops_are_a_mean_over_the_timed_steps():
    meter = SpeedMeter()
    meter.patch_dropouts.update({0.5: 3, 0.0: 1})
    module = SimpleNamespace(count_flops=lambda shape, rate: {0.5: 100.0, 0.0: 220.0}[rate])
    assert meter._flops_per_image(module, (3, 16, 16)) == (3 * 100 + 220) / 4


def test_record_of_a_shared_run(tmp_path, monkeypatch):
    monkeypatch.setenv("VIT_GELU_SHARED_DEVICE", "1")
    speed = train(tmp_path / "run", trainer__max_epochs=3)["speed"]
    assert speed["exclusive"] is False
    assert speed["timed_steps"] == 30 - WARMUP_STEPS - 2  # one lost at each of the two epochs' ends inside
    assert 0 < speed["step_ms"]["p50"] <= speed["step_ms"]["p95"]
    assert 0 < speed["data_wait_fraction"] < 1
    assert 0 < speed["mfu"] < 1
    assert speed["compile_seconds"] is None


class Queue:
    """A GPU that works off what is launched, on a clock of its own."""

    def __init__(self, launching: float, working: float) -> None:
        self.launching, self.working = launching, working
        self.now = self.done = 0.0

    def idle(self) -> "Mark":
        return Mark(self, self.done)

    def launch(self) -> "Mark":
        self.now += self.launching
        self.done = max(self.done, self.now - self.launching) + self.working
        self.done = max(self.done, self.now)  # its last kernel was launched last
        return Mark(self, self.done)


class Mark:
    def __init__(self, queue: Queue, done: float) -> None:
        self.queue, self.done = queue, done

    def query(self) -> bool:
        return self.done <= self.queue.now

    def synchronize(self) -> None:
        self.queue.now = max(self.queue.now, self.done)

    def elapsed_time(self, end: "Mark") -> float:
        return 1e3 * (end.done - self.done)


@pytest.mark.parametrize(
    ("launching", "working", "least", "most"),
    [(2.0, 1.0, 1.0, 1.0), (1.0, 1.05, 0.0, 0.2), (1.0, 2.0, 0.0, 0.1)],
)
def test_a_gpu_that_waits_for_its_launches(monkeypatch, capsys, launching, working, least, most):
    """The slower of both sets the time of a step; nothing is read before the GPU has come to it."""
    queue = Queue(launching, working)
    meter = SpeedMeter()
    steps = itertools.cycle([queue.launch, queue.idle])  # the end of one, the start of the next
    monkeypatch.setattr("vit_gelu.training.speed.mark", lambda device: next(steps)())
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    most_bytes = [1]
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: most_bytes[-1])
    monkeypatch.setattr(Exclusivity, "check", lambda self: True)
    module = SimpleNamespace(
        device=torch.device("cuda"),
        patches_left_out=0.0,
        compile_network=False,
        count_flops=lambda *_: 1.0,
        step_graph=SimpleNamespace(recordings=0),
    )
    strategy = SimpleNamespace(root_device=torch.device("cuda"))
    trainer = SimpleNamespace(world_size=1, log_every_n_steps=50, global_step=0, strategy=strategy)
    module.trainer = trainer
    batch = SimpleNamespace(targets=torch.zeros(8))
    meter.on_train_start(trainer, module)
    for _ in range(WARMUP_STEPS + 200):
        trainer.global_step += 1
        meter.on_train_batch_start(trainer, module, batch, 0)
        before = queue.now
        meter.on_train_batch_end(trainer, module, None, batch, 0)
        assert meter.images_per_second(last=50) is None or queue.now == before + launching, "it waited"
    module.device = torch.device("cpu")  # where Lightning puts it when training is over

    def device_peak(device, dtype):
        most_bytes.append(8192**2 * 4 * 3)  # its matrices
        return {"cuda": 1e12}[device.type]

    monkeypatch.setattr("vit_gelu.training.speed.device_peak", device_peak)
    speed = meter.summary(module, (3, 8, 8), torch.float32, exclusive=None)
    assert speed["peak_memory_bytes"] == 1, "it counts what the measurement of the peak took"
    assert (
        speed["data_wait_fraction"] == 0
    )  # no batch kept this GPU waiting, whatever its processor waited for
    assert speed["peak_flops_measured"] == 1e12
    assert least <= speed["launch_bound_fraction"] <= most
    assert speed["train_images_per_second"] == pytest.approx(8 / max(launching, working), rel=0.05)
    print_speed({"speed": speed, "seconds": 1.0})
    assert ("the GPU waited for the processor" in capsys.readouterr().out) == (least == 1.0)
