"""How long an ablation will take: a few steps of its first run, and the arithmetic."""

import json
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_gelu.ablation.plan import Arm, Run
from vit_gelu.ablation.slots import Slot
from vit_gelu.ablation.worker_process import WorkerDied, WorkerProcess
from vit_gelu.ablation.workspace import Workspace
from vit_gelu.cli.errors import UsageError
from vit_gelu.duration import clock

STEPS = 40


@dataclass(frozen=True)
class Estimate:
    """What was measured.

    Attributes:
        start: seconds until a worker's first step.
        run: seconds of one run in a worker that is warm.
        steps: of one run.
        step_ms: mean time of a training step.
        device: what it was measured on.
    """

    start: float
    run: float
    steps: int
    step_ms: float
    device: str

    def text(self, runs: int, places: int, executor: str) -> str:
        """The estimate in words."""
        total = self.start + self.run * -(-runs // places)
        measured = f"measured: {STEPS} steps of the first arm, {self.step_ms:.1f} ms each, on {self.device}"
        if executor != "local":
            return f"about {clock(self.run)} a run on this machine ({measured})"
        return f"expected: {clock(total)} for {runs} runs, {clock(self.run)} each ({measured})"


def measure(runs: list[Run], slots: list[Slot]) -> Estimate:
    """Train some steps of the first run's arm, twice in one worker, in a folder that is removed again.

    The first time pays for imports, data and compiling; the second shows what each further run costs.

    Raises:
        UsageError: the steps could not be trained; the reason is that of the run.
    """
    first = runs[0]
    short = first.arm.with_option("trainer.max_epochs", -1).with_option("trainer.max_steps", STEPS)
    for option, value in (
        ("model.warmup_epochs", 0.0),
        ("trainer.max_time", None),
        ("trainer.min_epochs", None),
    ):
        short = short.with_option(option, value)
    with tempfile.TemporaryDirectory(prefix="vit_gelu-") as place:
        workspace = Workspace(Path(place))
        several = first.arm.get("trainer.devices") > 1
        worker = WorkerProcess(
            "process" if several else "session", slots[0].environment, Path(place) / "worker.log"
        )
        walls, records = [], []
        try:
            for seed in (0, 1):
                run = Run(f"measure-{seed}", short, seed)
                workspace.write_configs([run])
                began = time.monotonic()
                ended = worker.run(workspace.request(run))
                walls.append(time.monotonic() - began)
                path = workspace.run_folder(run) / "record.json"
                if ended.status or not path.is_file():
                    raise UsageError(
                        f"arm {first.arm.label!r}: {ended.reason or 'some steps could not be trained'}"
                    )
                records.append(json.loads(path.read_text(encoding="utf-8")))
        except WorkerDied as error:
            raise UsageError(f"arm {first.arm.label!r}: {error}") from None
        finally:
            worker.stop()
    return _estimate(first.arm, walls, records[1])


def _estimate(arm: Arm, walls: list[float], record: dict[str, Any]) -> Estimate:
    trainer, speed, data = arm.config["trainer"], record["speed"], record["dataset"]
    rate = speed["train_images_per_second"]
    step = record["global_batch_size"] / rate if rate else record["seconds"] / record["steps"]
    per_epoch = data["train_n"] // record["global_batch_size"]
    limit = trainer["limit_train_batches"]
    if isinstance(limit, int):
        per_epoch = min(per_epoch, limit)
    elif limit is not None:
        per_epoch = int(per_epoch * limit)
    per_epoch = max(1, math.ceil(per_epoch / trainer["accumulate_grad_batches"]))
    epochs, most = trainer["max_epochs"], trainer["max_steps"]
    # Lightning's own default where neither is given.
    steps = per_epoch * (epochs if epochs is not None and epochs > 0 else 1000)
    if most is not None and most > 0:
        steps = min(steps, most) if epochs is not None and epochs > 0 else most
    every = trainer["check_val_every_n_epoch"] or 1
    look = data["val_n"] / speed["eval_images_per_second"] if speed["eval_images_per_second"] else 0.0
    # What a run costs beyond its steps: building, testing, recording.
    looks_seen = STEPS // per_epoch // every
    beyond = max(0.0, walls[1] - STEPS * step - looks_seen * look)
    run = steps * step + steps / per_epoch / every * look + beyond
    return Estimate(max(0.0, walls[0] - walls[1]), run, steps, 1e3 * step, record["env"]["device"])
