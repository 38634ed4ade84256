"""The LightningModule: a network, its loss, its optimizer. Its signature is the command line of ``--model.*``."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_gelu.models import build_vit
from vit_gelu.models.whitening import whiten_patches
from vit_gelu.training.attention import agree
from vit_gelu.training.base import RunModule, step_output
from vit_gelu.training.compilation import check_cuda_graphs, compile_network
from vit_gelu.training.metrics import ExactScore

WHITENING_IMAGES = 5000  # 320,000 patches at 32 px: the second moments of 48 pixels are known to a per cent


class ClassificationModule(RunModule):
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
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"--model.label_smoothing {label_smoothing}: must lie in [0, 1)")
        if not 0 <= patch_dropout_until <= 1:
            raise ValueError(f"--model.patch_dropout_until {patch_dropout_until}: must lie between 0 and 1")
        network_options: dict[str, Any] = {
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
        network_options |= {k: v for k, v in widths.items() if v is not None}
        super().__init__(
            network_options,
            optimizer=optimizer,
            optimizer_kwargs=optimizer_kwargs,
            lr=lr,
            weight_decay=weight_decay,
            schedule=schedule,
            warmup_epochs=warmup_epochs,
            final_lr_fraction=final_lr_fraction,
            ema_decay=ema_decay,
            attention_choice=attention_choice,
            compile=compile,
            cuda_graphs=cuda_graphs,
            seed=seed,
        )
        self.patch_dropout, self.patch_dropout_until = patch_dropout, patch_dropout_until
        self.whiten_patches = whiten_patches
        self.label_smoothing = label_smoothing

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
        super().on_train_batch_start(batch, batch_idx)
        if self.patch_dropout:
            steps = self.patch_dropout_until * self.trainer.estimated_stepping_batches
            self.network.patch_drop.p = self.patch_dropout if self.trainer.global_step < steps else 0.0

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Loss of one batch.

        Returns:
            See ``step_output``; ``correct`` is an int64 scalar: how often the likeliest class is the target, or
            the larger part of a mixed target.
        """
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        logits = self.network(batch.images)
        targets = batch.targets
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)
        with torch.no_grad():
            labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
            correct = (logits.argmax(dim=1) == labels).sum()
        return step_output(loss, correct=correct)

    def evaluation_step(self, batch: Any) -> None:
        # .forward, not __call__: evaluation runs eagerly, so odd batch sizes compile nothing.
        logits = self.network.forward(batch.images)
        assert self.score is not None
        self.score.update(logits, batch.targets)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluation_step(batch)

    def on_test_epoch_end(self) -> None:
        self._evaluation_end("test")
