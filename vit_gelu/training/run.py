"""One run from start to record: fit, test the chosen checkpoint, write ``record.json``."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging
from lightning.pytorch.callbacks.weight_averaging import WeightAveraging
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from vit_gelu.randomness import has_float64
from vit_gelu.training.attention import AttentionNote, with_choice
from vit_gelu.training.base import RunModule
from vit_gelu.training.checkpoint import CARD, read_checkpoint
from vit_gelu.training.checkpoints import AveragedWeights, Checkpoints
from vit_gelu.training.config_hash import config_hash
from vit_gelu.training.hooks import spare_the_step
from vit_gelu.training.loop import go_on_with_the_next_epoch
from vit_gelu.training.memory import keep_freed_memory
from vit_gelu.training.metrics import MaskedScore, Score
from vit_gelu.training.monitor import Diverged, Monitor
from vit_gelu.training.profiler import profile_into
from vit_gelu.training.progress import Display
from vit_gelu.training.record import SCHEMA, code_commit, environment, now, score_dict, write_json
from vit_gelu.training.speed import SpeedMeter
from vit_gelu.training.trackers import Trackers


class AtStart(Callback):
    """Calls a function when training starts: all is set up then, and a checkpoint has been read and accepted."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.call()


def run_callbacks(
    folder: Path,
    *,
    on_start: Callable[[], None] | None = None,
    ema_decay: float | None = None,
    checkpoint_minutes: float = 5.0,
    save: bool = True,
    show: bool = True,
    shared: bool = False,
) -> list[Callback]:
    """The callbacks of every run, in the order in which they must act.

    Args:
        folder: the run folder.
        on_start: called when training starts.
        ema_decay: see ``ClassificationModule``.
        checkpoint_minutes: longest time between two saves inside an epoch.
        save: whether checkpoints are written.
        show: whether progress is shown.
        shared: whether other runs use the same device on purpose.
    """
    monitor, speed = Monitor(), SpeedMeter(shared)
    callbacks: list[Callback] = [AveragedWeights(ema_decay)] if ema_decay is not None else []
    callbacks += [AtStart(on_start)] if on_start is not None else []
    callbacks += [AttentionNote(folder), speed, monitor]
    callbacks += [Display(monitor, speed)] if show else []
    callbacks += [Checkpoints(folder / "checkpoints", monitor, checkpoint_minutes)] if save else []
    return callbacks


def find(trainer: pl.Trainer, kind: type) -> Any:
    """The trainer's callback of a class, or None."""
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]


def train(
    module: RunModule,
    data: Any,
    trainer: pl.Trainer,
    folder: Path,
    *,
    config: dict[str, Any],
    ckpt_path: Path | None = None,
    test_checkpoint: str = "last",
    at_end: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Train, test, record.

    Args:
        module, data: what to train, and on what (``ImageData``).
        trainer: made with ``run_callbacks``.
        folder: the run folder; ``record.json`` is written there by process 0, at the end, whole.
        config: the resolved options, for the hash.
        ckpt_path: checkpoint to go on from.
        test_checkpoint: ``last`` or ``best`` (by validation): what the test set sees, once.
        at_end: called in process 0 before the record is written, with the network as it was judged: where the
            record is, what this leaves behind is there too.

    Returns:
        The record, status ``finished``.

    Raises:
        Diverged: a loss was not finite; the record is written with status ``diverged`` first.
        Interrupted: a signal came; the checkpoint is written, no record is.
        ValueError: options that do not fit the data, or a checkpoint of another run.
    """
    trackers = Trackers(trainer.loggers, config)
    trainer.callbacks.insert(0, AtStart(trackers.begin))  # type: ignore[attr-defined]
    try:
        record = _train(module, data, trainer, folder, config, ckpt_path, test_checkpoint, at_end)
        trackers.conclude(record)
    except BaseException:
        trackers.end(failed=True)
        raise
    trackers.end(failed=False)
    return record


def _train(
    module: RunModule,
    data: Any,
    trainer: pl.Trainer,
    folder: Path,
    config: dict[str, Any],
    ckpt_path: Path | None,
    test_checkpoint: str,
    at_end: Callable[[], None] | None,
) -> dict[str, Any]:
    code_commit()  # now: the record is written hours later
    monitor, speed = find(trainer, Monitor), find(trainer, SpeedMeter)
    checkpoints = find(trainer, Checkpoints)
    _check_evaluation(trainer, checkpoints, test_checkpoint)
    _check_company(trainer)
    _check_float64(trainer)
    module.recorded = True
    module.prepare(data, None if ckpt_path is None else read_checkpoint(ckpt_path)[CARD])
    if "test" in module.splits:
        _check_share_of_test(trainer.limit_test_batches, data, trainer.world_size)
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    profile_into(trainer, folder)
    spare_the_step(trainer, module, data)
    go_on_with_the_next_epoch(trainer)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "finished",
        "objective": module.objective,
        "tested": test_checkpoint if "test" in module.splits else None,
    }
    try:
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        monitor.flush(trainer)  # the steps since the last row, which the checkpoint still has as such
    except Diverged as error:
        record |= {"status": "diverged", "diverged_step": error.step, "diverged_lr": _finite(error.lr)}
        record |= _describe(module, data, trainer, config, monitor)
        record |= {"epochs": trainer.current_epoch, "steps": trainer.global_step, "seconds": monitor.seconds}
        record |= {"val": None, "test": None, "speed": None, "tested": None}
        if trainer.is_global_zero:
            write_json(folder / "record.json", record)
        raise
    seconds, trained = monitor.seconds, time.monotonic()
    steps, planned = trainer.global_step, trainer.estimated_stepping_batches
    # Where a checkpoint of its last step ends the training, the Trainer does not count the epoch that it was in.
    epochs = max(trainer.current_epoch, monitor.epoch + 1 if steps else 0)
    image_shape = (data.in_channels, *data.image_size)
    # A run that was killed between its last step and its record comes back without a step to compile.
    if module.compile_network and speed.steps and speed.graphs == 0:
        raise RuntimeError(
            "--model.compile: nothing was compiled, so the run's speed would be reported wrongly"
        )
    exclusive, summary = speed.exclusive(), None
    if trainer.is_global_zero:
        summary = speed.summary(module, image_shape, _compute_dtype(trainer), exclusive)
    if test_checkpoint == "best":
        assert checkpoints is not None
    if test_checkpoint == "best" and checkpoints.best_step >= 0:
        module.load_state_dict(read_checkpoint(trainer.strategy.broadcast(checkpoints.best))["state_dict"])
        module.to(trainer.strategy.root_device)
        monitor.validated_step = steps  # what is judged now are other weights
    scores = {split: _evaluate(trainer, module, data, split) for split in ("val", "test")}
    if checkpoints is not None and checkpoints.best_step < 0 and scores["val"] is not None:
        # Never validated on the way: the only candidate is what came out.
        checkpoints.adopt_last(scores["val"].merit, steps, copy=trainer.is_global_zero)
    record |= _describe(module, data, trainer, config, monitor)
    record |= {name: score_dict(score, name) for name, score in scores.items()}
    record |= {
        "epochs": epochs,
        "steps": steps,
        "planned_steps": int(planned),
        "seconds": seconds,
        "speed": summary,
    }
    if checkpoints is not None:
        record["best"] = _best(module, checkpoints)
    record["total_seconds"] = seconds + time.monotonic() - trained
    if trainer.is_global_zero:
        if at_end is not None:
            at_end()
        write_json(folder / "record.json", record)
        for logger in trainer.loggers:
            if isinstance(scores["test"], Score):
                row = {
                    "epoch": monitor.epoch,
                    "test_loss": scores["test"].loss,
                    "test_top1": scores["test"].top1,
                }
                logger.log_metrics(row, step=steps)
    return record


def _check_evaluation(trainer: pl.Trainer, checkpoints: Checkpoints | None, test_checkpoint: str) -> None:
    if test_checkpoint == "best":
        if checkpoints is None:
            raise ValueError("--test_checkpoint best: this run saves no checkpoints")
        if not trainer.limit_val_batches:
            raise ValueError(
                "--test_checkpoint best: --trainer.limit_val_batches 0 leaves nothing to judge by"
            )


def _check_share_of_test(limit: int | float, data: Any, processes: int) -> None:
    """Refuse before the training what the Trainer would refuse after it: a share that is less than a batch."""
    batches = math.ceil(math.ceil(data.test_n / processes) / data.eval_batch_size)
    if isinstance(limit, float) and limit > 0 and int(batches * limit) == 0:
        raise ValueError(
            f"--trainer.limit_test_batches {limit}: less than one of {batches} batches; give a larger share, a number "
            "of batches, or 0 to test nothing"
        )


def _check_company(trainer: pl.Trainer) -> None:
    """Refuse what others bring along and the record would be wrong with."""
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise ValueError(
            "--trainer.strategy: processes that are spawned or forked take along what they have measured, so that "
            "the record would miss it; use ddp"
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        other = isinstance(callback, WeightAveraging) and not isinstance(callback, AveragedWeights)
        if other or isinstance(callback, StochasticWeightAveraging):
            raise ValueError(
                f"--trainer.callbacks {type(callback).__name__}: other weights would be tested than are saved; "
                "for an average of the weights: --model.ema_decay"
            )


def _check_float64(trainer: pl.Trainer) -> None:
    if str(trainer.precision) == "64-true" and not has_float64(trainer.strategy.root_device):
        raise ValueError(
            "--trainer.precision 64-true: this device has no float64; take 32-true, or --trainer.accelerator cpu"
        )


def _best(module: RunModule, checkpoints: Checkpoints) -> dict[str, Any] | None:
    """The best validation of the run, as it stands in the record; None where there was none."""
    if checkpoints.best_step < 0:
        return None
    merit = checkpoints.best_merit
    figure = {"val_top1": merit} if module.objective == "classification" else {"val_loss": -merit}
    return figure | {"step": checkpoints.best_step}


def _evaluate(trainer: pl.Trainer, module: RunModule, data: Any, split: str) -> Score | MaskedScore | None:
    """The score of a split; None where the module is not judged by it, or the user limited it to 0 batches."""
    if split not in module.splits:
        return None
    if not (trainer.limit_val_batches if split == "val" else trainer.limit_test_batches):
        return None
    module.last_score = None
    if split == "val":
        trainer.validate(module, datamodule=data, verbose=False)
    else:
        trainer.test(module, datamodule=data, verbose=False)
    assert module.last_score is not None
    return module.last_score


def _compute_dtype(trainer: pl.Trainer) -> torch.dtype:
    precision = str(trainer.precision)
    return torch.bfloat16 if "bf16" in precision else torch.float16 if "16" in precision else torch.float32


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _describe(
    module: RunModule, data: Any, trainer: pl.Trainer, config: dict[str, Any], monitor: Monitor
) -> dict[str, Any]:
    description = module.description
    return {
        "arm": config.get("arm", ""),
        "tuned": config.get("tuned"),
        "activation": description["activation"],
        "activation_kwargs": description["activation_kwargs"],
        "seed": module.seed,
        "model": {
            "name": description["name"],
            "parameters": sum(p.numel() for p in module.network.parameters()),
            "trained_parameters": sum(p.numel() for p in module.network.parameters() if p.requires_grad),
            "image_size": list(data.image_size),
        },
        "dataset": {
            "name": data.source.name,
            "train_n": data.train_n,
            "val_n": data.val_n,
            "test_n": data.test_n,
            "fingerprint": data.fingerprint,
        },
        "pretrained": module.origin,
        "global_batch_size": data.global_batch_size,
        "attention": module.attention_in_use.record() if module.attention_in_use else None,
        "order_hash": data.order_hash,
        "config_hash": config_hash(with_choice(config, module.attention_in_use)),
        "env": environment(trainer, module.compile_network, module.graphs, autotuned=module.autotune)
        | {"earlier": module.earlier_stages or None},
        "started": monitor.started,
        "ended": now(),
    }
