"""What every training of a network has in common: optimizer, schedule, exact evaluation, and the checkpoint's card."""

import math
from types import NoneType
from typing import Any, Literal

import lightning.pytorch as pl
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from vit_gelu.activations import resolve_activation
from vit_gelu.data import ImageData
from vit_gelu.models import VisionTransformer
from vit_gelu.models.build import Network
from vit_gelu.randomness import seed_noise
from vit_gelu.training.attention import AttentionInUse, check_choice
from vit_gelu.training.card import card_of, check_card, stage_of, stages_before
from vit_gelu.training.checkpoint import CARD
from vit_gelu.training.compilation import AUTOTUNE, check_autotuning, check_cuda_graphs
from vit_gelu.training.flops import count_flops
from vit_gelu.training.hooks import spare_the_question
from vit_gelu.training.layer_decay import check_layer_decay, layer_scales
from vit_gelu.training.metrics import MaskedScore, Score
from vit_gelu.training.optim import (
    SCHEDULES,
    build_optimizer,
    build_schedule,
    resolve_optimizer,
    warmup_length,
)
from vit_gelu.training.step_graph import StepGraph, reason_against


class RunModule(pl.LightningModule):
    """A network in training; a subclass says what is learned from the images.

    Args:
        network_options: of the network: ``name``, and options of ``VisionTransformer``.
        optimizer, optimizer_kwargs, lr, weight_decay, schedule, warmup_epochs, final_lr_fraction, ema_decay,
            attention_choice, compile, cuda_graphs, seed, warmup_steps, layer_decay: see ``ClassificationModule``.

    Attributes:
        objective: what the network learns, for the record.
        splits: what it is judged on at the end of a run.
        recorded: whether a run's own callbacks log it; a Trainer of one's own gets the figures by ``log``.
        net: the network, once training or evaluation has been set up.
        last_score: of the last evaluation.

    Raises:
        ValueError: an option that is wrong whatever the data are.
    """

    objective = "classification"
    splits: tuple[str, ...] = ("val", "test")
    against_recording = "what differs from step to step is not known"  # empty: ``held_fast`` says it
    # Parts of the card that a run must have in common with its checkpoint.
    continued: tuple[str, ...] = ("network", "data")

    def __init__(
        self,
        network_options: dict[str, Any],
        *,
        optimizer: str,
        optimizer_kwargs: dict[str, Any] | None,
        lr: float,
        weight_decay: float,
        schedule: str,
        warmup_epochs: float,
        final_lr_fraction: float,
        ema_decay: float | None,
        attention_choice: list[str] | None,
        compile: bool | Literal["max-autotune"],
        cuda_graphs: bool | Literal["auto"],
        seed: int,
        warmup_steps: int | None = None,
        layer_decay: float | None = None,
    ) -> None:
        super().__init__()
        try:
            if network_options["activation"] is not None:
                resolve_activation(network_options["activation"])
        except ValueError as error:
            raise ValueError(f"--activation: {error}") from None
        resolve_optimizer(optimizer)
        if schedule not in SCHEDULES:
            raise ValueError(f"--model.schedule {schedule!r}: must be one of {', '.join(SCHEDULES)}")
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ValueError(f"--model.ema_decay {ema_decay}: must lie between 0 and 1")
        if not warmup_epochs >= 0:
            raise ValueError(f"--model.warmup_epochs {warmup_epochs}: must be >= 0")
        if warmup_steps is not None and warmup_steps < 0:
            raise ValueError(f"--model.warmup_steps {warmup_steps}: must be >= 0")
        if warmup_steps is not None and warmup_epochs:
            raise ValueError(
                f"--model.warmup_steps {warmup_steps}: not beside --model.warmup_epochs {warmup_epochs:g} (the "
                "recipe's?); set --model.warmup_epochs 0"
            )
        check_choice(network_options["attention"], attention_choice)
        self.network_options = network_options
        self.attention_choice = attention_choice
        self.attention_in_use: AttentionInUse | None = None
        self.compile_network = bool(compile)
        self.autotune = compile == AUTOTUNE
        self.cuda_graphs = cuda_graphs
        self.graphs: str | None = None  # what is replayed, once it is known: step, or network
        self.step_graph = StepGraph()
        self.optimizer = optimizer
        self.optimizer_kwargs = optimizer_kwargs or {}
        self.lr = lr
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.warmup_epochs, self.warmup_steps = warmup_epochs, warmup_steps
        check_layer_decay(layer_decay)
        self.layer_decay = layer_decay
        self.final_lr_fraction = final_lr_fraction
        self.ema_decay = ema_decay
        self.seed = seed
        self.recorded = False
        self.batches_seen = 0
        self.earlier_stages: list[dict[str, Any]] = []  # see ``card.stage_of``
        self.net: Network | None = None
        self.score: Metric | None = None
        self.last_score: Score | MaskedScore | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        # A module looks first whether this is a weight, which neither a count is nor the name of the current hook.
        if type(value) in (int, str, NoneType) and name in self.__dict__:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def network(self) -> Network:
        """The network; there is one once training or evaluation has been set up."""
        net: Any = self._modules.get("net")  # in every step: faster than by its name
        assert net is not None, "configure_model has not run"
        return net

    # -- what a subclass may say differently -------------------------------------------------------------

    @property
    def learning(self) -> nn.Module:
        """All that the optimizer changes."""
        return self.network

    @property
    def patches_left_out(self) -> float:
        """Share of the patches that the current training step does not put through the network."""
        return self.network.patch_drop.p if isinstance(self.network, VisionTransformer) else 0.0

    @property
    def description(self) -> dict[str, Any]:
        """What the network is, for the record: ``name``, ``activation``, ``activation_kwargs``."""
        return {k: self.network_options[k] for k in ("name", "activation", "activation_kwargs")}

    @property
    def origin(self) -> dict[str, Any] | None:
        """Where the weights come from that the training starts from, for the record; None: from scratch."""
        return None

    def prepare(self, data: Any, saved: dict[str, Any] | None) -> None:
        """Called before data are loaded and the network is built.

        Args:
            data: ``ImageData``.
            saved: card of the checkpoint that the run goes on from; None at its start.

        Raises:
            ValueError: a checkpoint to start from that is none.
        """

    def count_flops(self, image_shape: tuple[int, int, int], patches_left_out: float) -> int:
        """Floating-point operations of one image's training step; see ``speed.count_flops``."""
        return count_flops(self.network, image_shape, patches_left_out)

    def held_fast(self) -> Any:
        """What a recorded step holds fast and a later one may have otherwise; None: not to be recorded now."""
        raise NotImplementedError

    # -- training -----------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """One seed for the weights, the order of the images and their augmentation."""
        if isinstance(data := self.trainer.datamodule, ImageData):  # type: ignore[attr-defined]
            data.seed = self.seed

    def plan_speed(self) -> None:
        """Decide what is replayed from CUDA graphs, and say so; called before the network is built and compiled.

        Raises:
            ValueError: CUDA graphs or tuned products were asked for where they cannot work.
        """
        if self.autotune:
            check_autotuning(self.trainer.strategy.root_device)
        if not self.cuda_graphs:
            return
        try:
            check_cuda_graphs(self.trainer)
        except ValueError:
            if self.cuda_graphs == "auto":
                return
            raise
        reason = self.against_recording or reason_against(self.trainer, self, self.optimizer)
        if reason and self.cuda_graphs == "auto":
            return
        if reason and not self.compile_network:
            raise ValueError(
                f"--model.cuda_graphs true: needs --model.compile true here, where not the whole step can be "
                f"recorded: {reason}"
            )
        self.graphs = "network" if reason else "step"
        if self.trainer.is_global_zero:
            what = f"the network alone: {reason}" if reason else "the whole step"
            print(f"CUDA graphs: {what}", flush=True)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.graphs == "step":
            self._batch = batch
        # Counted here, and saved: a Trainer's own count need not be that of a run that went on.
        seed_noise(self.seed, self.batches_seen, self.global_rank)
        self.batches_seen += 1

    def step_output(self, loss: Tensor, batch_idx: int, **counts: Tensor) -> dict[str, Tensor]:
        """What a training step returns: ``loss`` with its graph, and ``batch_loss``, the same for logs.

        Of ``loss``, Lightning hands on what is left after division by ``accumulate_grad_batches``: in the last step of
        an epoch too, which may have fewer batches, and whose losses are larger here for it.

        Args:
            loss: mean over the batch, a scalar.
            batch_idx: of the batch in its epoch.
            counts: what else the step returns.
        """
        output = {"loss": loss, "batch_loss": loss.detach(), **counts}
        if self._trainer is not None:  # a loop of one's own has none, and divides by nothing
            wanted, batches = self._trainer.accumulate_grad_batches, self._trainer.num_training_batches
            left_over = batches % wanted
            if left_over and batch_idx >= batches - left_over:
                output["loss"] = loss * wanted / left_over
            if not self.recorded and self.graphs != "step":  # a recorded step would say it once
                self.log("train_loss", output["batch_loss"], prog_bar=True, batch_size=1)
        return output

    def configure_optimizers(self) -> Any:
        if not math.isfinite(self.trainer.estimated_stepping_batches):
            raise ValueError(
                f"--trainer.max_epochs {self.trainer.max_epochs}: the learning-rate schedule needs an end: give "
                "--trainer.max_epochs or --trainer.max_steps; --trainer.max_time may cut the training short"
            )
        scaled = str(self.trainer.precision) == "16-mixed"
        optimizer = build_optimizer(
            self.learning,
            self.optimizer,
            lr=self.lr,
            weight_decay=self.weight_decay,
            # With a gradient scaler, fused kernels unscale by themselves, too late for clipping.
            fused=not scaled,
            layer_scales=layer_scales(self.learning, self.layer_decay),
            **self.optimizer_kwargs,
        )
        if not scaled and hasattr(optimizer, "_step_supports_amp_scaling"):
            # Lightning refuses to clip for what could unscale, in bfloat16 too, where nothing is scaled.
            optimizer._step_supports_amp_scaling = False
        if self.trainer.strategy.root_device.type == "cpu":
            spare_the_question(optimizer)
        total = int(self.trainer.estimated_stepping_batches)
        batches = self.trainer.datamodule.batches_per_epoch  # type: ignore[attr-defined]
        per_epoch = math.ceil(batches / self.trainer.accumulate_grad_batches)
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            warmup = 0  # a trial of a few steps, whatever is asked of a whole training
        else:
            warmup = warmup_length(
                self.warmup_epochs, self.warmup_steps, steps_per_epoch=per_epoch, total_steps=total
            )
        scheduler = build_schedule(
            optimizer,
            total_steps=total,
            warmup_steps=warmup,
            schedule=self.schedule,
            final_lr_fraction=self.final_lr_fraction,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any | None = None
    ) -> None:
        def run() -> None:
            super(RunModule, self).optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            # Lightning keeps gradients through the next forward pass, whose activations can use their memory.
            optimizer.zero_grad(set_to_none=True)

        if self.graphs == "step":
            self.step_graph.step(self.held_fast(), self._batch, optimizer, optimizer_closure, run)
        else:
            run()

    def on_train_end(self) -> None:
        self.step_graph = StepGraph()  # evaluation can use the memory
        self._batch = None

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if gradient_clip_val:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Nothing: the step before left no gradients."""

    @property
    def leaves_no_gradients(self) -> bool:
        """Whether there is nothing to do before the backward pass; a subclass may zero them in its own way."""
        return type(self).optimizer_zero_grad is RunModule.optimizer_zero_grad

    @property
    def has_the_common_step(self) -> bool:
        """Whether backward pass, clipping and update are those of this class; a subclass may have others."""
        names = ("backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping")
        return all(getattr(type(self), name) is getattr(RunModule, name) for name in names)

    # -- evaluation ---------------------------------------------------------------------------------------

    def evaluation_step(self, batch: Any) -> None:
        """Add a batch of images to ``score``."""
        raise NotImplementedError

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluation_step(batch)

    def on_validation_epoch_end(self) -> None:
        self._evaluation_end("val")

    def _evaluation_end(self, split: str) -> None:
        assert self.score is not None
        score = self.score.compute()
        self.score.reset()
        expected = getattr(self.trainer.datamodule, f"{split}_n")  # type: ignore[attr-defined]
        limit = self.trainer.limit_val_batches if split == "val" else self.trainer.limit_test_batches
        whole = isinstance(limit, float) and limit == 1.0  # 1 is one batch, 1.0 all of them
        if whole and score.n != expected:
            raise RuntimeError(f"{split} evaluation counted {score.n} images of {expected}")
        self.last_score = score
        # Every process holds the summed score already: logging must not reduce it again.
        values = {f"{split}_{name}": value for name, value in score.figures().items()}
        self.log_dict(values, logger=False if self.recorded else None, rank_zero_only=False, sync_dist=False)

    # -- checkpoints --------------------------------------------------------------------------------------

    def card(self) -> dict[str, Any]:
        """What a checkpoint says of itself: plain types."""
        return card_of(self)

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Any:
        """Not Lightning's way: a network is made for its data, and the checkpoint says for which.

        Raises:
            NotImplementedError: always; names what to call.
        """
        raise NotImplementedError(
            "the network of a checkpoint, with its weights: vit_gelu.training.load_network(PATH); to go on with its "
            "training: vit-gelu train --resume RUN"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CARD] = self.card()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on from a checkpoint of another model, seed or data, or one that half a step is missing in.

        Raises:
            ValueError: names the first thing that differs, or what to go on from instead.
        """
        check_card(checkpoint, self.card(), self.continued, self.trainer.accumulate_grad_batches)
        self.batches_seen = checkpoint[CARD]["batches_seen"]
        self.earlier_stages = stages_before(checkpoint, stage_of(self.trainer))
