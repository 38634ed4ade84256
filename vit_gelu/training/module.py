"""The LightningModule: a network, its loss, its optimizer. Its signature is the command line of ``--model.*``."""

import math
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from vit_gelu.activations import resolve_activation
from vit_gelu.models import VisionTransformer, build_vit
from vit_gelu.models.whitening import whiten_patches
from vit_gelu.randomness import seed_noise
from vit_gelu.training.attention import AttentionInUse, agree, check_choice
from vit_gelu.training.checkpoint import CARD, CARD_SCHEMA
from vit_gelu.training.compilation import check_cuda_graphs, compile_network
from vit_gelu.training.metrics import ExactScore, Score
from vit_gelu.training.optim import SCHEDULES, build_optimizer, build_schedule, resolve_optimizer

YOUNGER = {"mlp_memory": "fast"}
WHITENING_IMAGES = 5000  # 320,000 patches at 32 px: the second moments of 48 pixels are known to a per cent


class ClassificationModule(pl.LightningModule):
    """A Vision Transformer that learns to classify images.

    Image size, channels and number of classes come from the data when training starts.

    Args:
        name: Size of the model: vit_tiny, vit_small, vit_base, vit_large, vit_huge.
        activation: Activation of every MLP: gelu, relu, silu, … or an import path to your own nn.Module.
        activation_kwargs: Options of the activation, for example {negative_slope: 0.1}.
        patch_size: Side of a patch in pixels, or [height, width]; must divide the image.
        embed_dim: Width of the tokens; the size's own if not given.
        depth: Number of blocks; the size's own if not given.
        num_heads: Attention heads; must divide the width.
        mlp_ratio: Hidden width of the MLP as a multiple of the width.
        pooling: What the head sees: cls (the class token) or mean (the average of the patch tokens).
        class_token: Whether there is a class token; pooling cls needs it.
        position_embedding: learned, sincos2d or none.
        dropout: Dropout rate after projections and embeddings.
        attention_dropout: Dropout rate of attention weights.
        patch_dropout: Share of the patches left out of each training image.
        patch_dropout_until: Share of the training after which all patches are seen again.
        drop_path: Stochastic depth rate of the last block; earlier ones rise to it linearly.
        layer_scale: Initial LayerScale factor; off if not given.
        qk_norm: LayerNorm on queries and keys.
        register_tokens: Number of register tokens.
        representation_size: Width of the paper's tanh pre-training head; a single linear head if not given.
        zero_init_head: Start the head at zero.
        stem: patch (linear patches), or resnet50 for the paper's hybrid.
        attention: auto (the fastest by a measurement), explicit, matmul or strided (softmax written out), sdpa
            (torch's choice), flash, efficient, cudnn or math.
        attention_choice: What auto came to, [in training, in evaluation]; a run writes it into its config.yaml,
            so that it goes on and is repeated with the same arithmetic.
        mlp_memory: fast, or lean: less memory, as MLPs compute their activation again for the backward pass.
        init: Scheme of the initial weights: timm, jax or mimetic.
        whiten_patches: Start the patch projection from the training images' second moments, which it whitens.
        compile: Compile the network with torch.compile.
        cuda_graphs: Replay the compiled network from CUDA graphs; for small models on a GPU.
        optimizer: Any optimizer that torch or timm knows by name: adamw, sgd, muon, lion, …
        optimizer_kwargs: Its options, for example {betas: [0.9, 0.95]}.
        lr: Learning rate at the end of the warm-up.
        weight_decay: Of matrices and kernels; vectors, embeddings and activations have none.
        schedule: cosine, linear or constant.
        warmup_epochs: Length of the linear warm-up, in epochs; fractions are allowed.
        final_lr_fraction: Where the schedule ends, as a fraction of lr.
        label_smoothing: Share of the target spread over all classes.
        ema_decay: Decay per step of the moving average of the weights that is evaluated and saved; off if not given.
        seed: Fixes initial weights and noise; the command line's --seed.
    """

    def __init__(
        self,
        name: str = "vit_tiny",
        activation: str = "gelu",
        activation_kwargs: dict[str, Any] | None = None,
        patch_size: int | list[int] = 4,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
        pooling: str = "cls",
        class_token: bool = True,
        position_embedding: str = "learned",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        patch_dropout: float = 0.0,
        patch_dropout_until: float = 1.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        qk_norm: bool = False,
        register_tokens: int = 0,
        representation_size: int | None = None,
        zero_init_head: bool = False,
        stem: str = "patch",
        attention: str = "auto",
        attention_choice: list[str] | None = None,
        mlp_memory: str = "fast",
        init: str = "timm",
        whiten_patches: bool = False,
        compile: bool = False,
        cuda_graphs: bool = False,
        optimizer: str = "adamw",
        optimizer_kwargs: dict[str, Any] | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        schedule: str = "cosine",
        warmup_epochs: float = 0.0,
        final_lr_fraction: float = 0.0,
        label_smoothing: float = 0.0,
        ema_decay: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        try:
            resolve_activation(activation)
        except ValueError as error:
            raise ValueError(f"--activation: {error}") from None
        resolve_optimizer(optimizer)
        if schedule not in SCHEDULES:
            raise ValueError(f"--model.schedule {schedule!r}: must be one of {', '.join(SCHEDULES)}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"--model.label_smoothing {label_smoothing}: must lie in [0, 1)")
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ValueError(f"--model.ema_decay {ema_decay}: must lie between 0 and 1")
        if not warmup_epochs >= 0:
            raise ValueError(f"--model.warmup_epochs {warmup_epochs}: must be >= 0")
        if not 0 <= patch_dropout_until <= 1:
            raise ValueError(f"--model.patch_dropout_until {patch_dropout_until}: must lie between 0 and 1")
        check_choice(attention, attention_choice)
        if cuda_graphs and not compile:
            raise ValueError("--model.cuda_graphs true: needs --model.compile true")
        self.patch_dropout, self.patch_dropout_until = patch_dropout, patch_dropout_until
        self.network_options: dict[str, Any] = {
            "name": name,
            "activation": activation,
            "activation_kwargs": activation_kwargs or {},
            "patch_size": tuple(patch_size) if isinstance(patch_size, list) else patch_size,
            "mlp_ratio": mlp_ratio,
            "pooling": pooling,
            "class_token": class_token,
            "position_embedding": position_embedding,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "patch_dropout": patch_dropout,
            "drop_path": drop_path,
            "layer_scale": layer_scale,
            "qk_norm": qk_norm,
            "register_tokens": register_tokens,
            "representation_size": representation_size,
            "zero_init_head": zero_init_head,
            "stem": stem,
            "attention": attention,
            "mlp_memory": mlp_memory,
            "init": init,
            "seed": seed,
        }
        widths = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
        self.network_options |= {k: v for k, v in widths.items() if v is not None}
        self.whiten_patches = whiten_patches
        self.attention_choice = attention_choice
        self.attention_in_use: AttentionInUse | None = None
        self.compile_network = compile
        self.cuda_graphs = cuda_graphs
        self.optimizer = optimizer
        self.optimizer_kwargs = optimizer_kwargs or {}
        self.lr = lr
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.warmup_epochs = warmup_epochs
        self.final_lr_fraction = final_lr_fraction
        self.label_smoothing = label_smoothing
        self.ema_decay = ema_decay
        self.seed = seed
        self.batches_seen = 0
        self.net: VisionTransformer | None = None
        self.score: ExactScore | None = None
        self.last_score: Score | None = None

    @property
    def network(self) -> VisionTransformer:
        """The network; there is one once training or evaluation has been set up."""
        assert self.net is not None, "configure_model has not run"
        return self.net

    def configure_model(self) -> None:
        """Build the network for the data at hand; a second call keeps what is there.

        Raises:
            ValueError: options that do not fit each other or the images.
        """
        if self.net is not None:
            return
        if self.cuda_graphs:
            check_cuda_graphs(self.trainer)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.net = build_vit(
            image_size=data.image_size,
            in_channels=data.in_channels,
            num_classes=data.num_classes,
            **self.network_options,
        )
        if self.whiten_patches:
            whiten_patches(self.net, data.sample_images(WHITENING_IMAGES), seed=self.seed)
        self.score = ExactScore(data.num_classes)
        self.attention_in_use = agree(
            self.trainer, self.net, data, self.attention_choice, compiled=self.compile_network
        )
        if self.compile_network:
            compile_network(self.net, self.trainer.strategy.root_device, cuda_graphs=self.cuda_graphs)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Counted here, not by the Trainer: resumed at an epoch's end under max_steps, its epochs are one ahead.
        seed_noise(self.seed, self.batches_seen, self.global_rank)
        self.batches_seen += 1
        if self.patch_dropout:
            steps = self.patch_dropout_until * self.trainer.estimated_stepping_batches
            self.network.patch_drop.p = self.patch_dropout if self.trainer.global_step < steps else 0.0

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Loss of one batch.

        Returns:
            ``loss`` (scalar, with graph), ``batch_loss`` (the same for logs: of ``loss``, Lightning hands on what
            is left after division by the accumulated batches) and ``correct`` (int64 scalar: how often the
            likeliest class is the target, or the larger part of a mixed target).
        """
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        logits = self.network(batch.images)
        targets = batch.targets
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)
        with torch.no_grad():
            labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
            correct = (logits.argmax(dim=1) == labels).sum()
        return {"loss": loss, "batch_loss": loss.detach(), "correct": correct}

    def _evaluation_step(self, batch: Any) -> None:
        # .forward, not __call__: evaluation runs eagerly, so odd batch sizes compile nothing.
        logits = self.network.forward(batch.images)
        assert self.score is not None
        self.score.update(logits, batch.targets)

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
        values = {f"{split}_loss": score.loss, f"{split}_top1": score.top1, f"{split}_top5": score.top5}
        self.log_dict(values, logger=False, rank_zero_only=False, sync_dist=False)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluation_step(batch)

    def on_validation_epoch_end(self) -> None:
        self._evaluation_end("val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluation_step(batch)

    def on_test_epoch_end(self) -> None:
        self._evaluation_end("test")

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(
            self.network,
            self.optimizer,
            lr=self.lr,
            weight_decay=self.weight_decay,
            # With a gradient scaler, fused kernels unscale by themselves, too late for clipping.
            fused=str(self.trainer.precision) != "16-mixed",
            **self.optimizer_kwargs,
        )
        if not math.isfinite(self.trainer.estimated_stepping_batches):
            raise ValueError(
                f"--trainer.max_epochs {self.trainer.max_epochs}: the learning-rate schedule needs an end: give "
                "--trainer.max_epochs or --trainer.max_steps; --trainer.max_time may cut the training short"
            )
        total = int(self.trainer.estimated_stepping_batches)
        data, limit = self.trainer.datamodule, self.trainer.limit_train_batches  # type: ignore[attr-defined]
        batches = data.train_n // data.global_batch_size
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        per_epoch = math.ceil(batches / self.trainer.accumulate_grad_batches)
        scheduler = build_schedule(
            optimizer,
            total_steps=total,
            warmup_steps=round(self.warmup_epochs * per_epoch),
            schedule=self.schedule,
            final_lr_fraction=self.final_lr_fraction,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _card(self) -> dict[str, Any]:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return {
            "schema": CARD_SCHEMA,
            "network": self.network.config,
            "data": {
                "name": data.source.name,
                "class_names": list(data.class_names),
                "mean": list(data.mean),
                "std": list(data.std),
                "image_size": list(data.image_size),
                "upsampled_from": list(data.source.image_size) if data.upsample else None,
                "in_channels": data.in_channels,
                "fingerprint": data.fingerprint,
                "global_batch_size": data.global_batch_size,
            },
            "seed": self.seed,
            "epoch": self.trainer.current_epoch,
            "step": self.trainer.global_step,
            "batches_seen": self.batches_seen,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CARD] = self._card()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on from a checkpoint of another model, seed or data.

        Raises:
            ValueError: names the first thing that differs.
        """
        saved, mine = checkpoint.get(CARD), self._card()
        if saved is None:
            raise ValueError("--ckpt_path: not a checkpoint of vit_gelu")
        if saved["seed"] != self.seed:
            raise ValueError(f"--ckpt_path: the checkpoint has seed {saved['seed']}, this run {self.seed}")
        for part in ("network", "data"):
            for name, value in mine[part].items():
                # An option that is younger than the checkpoint had its default.
                if saved[part].get(name, YOUNGER.get(name)) != value:
                    raise ValueError(
                        f"--ckpt_path: the checkpoint has {part} option {name} = {saved[part].get(name)!r}, "
                        f"this run {value!r}; a run goes on only as it began"
                    )
        self.batches_seen = saved["batches_seen"]

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any | None = None
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # Lightning keeps gradients through the next forward pass, whose activations can use their memory.
        optimizer.zero_grad(set_to_none=True)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Nothing: the step before left no gradients."""
