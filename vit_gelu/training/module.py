"""The LightningModule: a network, its loss, its optimizer. Its signature is the command line of ``--model.*``."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_gelu.models import VisionTransformer
from vit_gelu.models.anneal import AnnealHandle
from vit_gelu.models.build import Network
from vit_gelu.models.options import pair
from vit_gelu.models.pretrained import Pretrained, read_pretrained
from vit_gelu.models.whitening import whiten_patches
from vit_gelu.training.attention import agree
from vit_gelu.training.base import RunModule
from vit_gelu.training.beginning import anneal_share, begin, begin_again, check_same_start, fill_defaults
from vit_gelu.training.checkpoints import AveragedWeights
from vit_gelu.training.compilation import compile_network
from vit_gelu.training.freeze import about_frozen
from vit_gelu.training.freeze import freeze as freeze_parts
from vit_gelu.training.metrics import ExactScore, sum_dtype
from vit_gelu.training.start import Beginning
from vit_gelu.training.timm_start import TIMMS_OWN, check_timm_options, is_timm, timm_images

WHITENING_IMAGES = 5000  # 320,000 patches at 32 px: the second moments of 48 pixels are known to a per cent


class ClassificationModule(RunModule):
    """A Vision Transformer that learns to classify images.

    Image size, channels and number of classes come from the data when training starts.

    Args:
        name: Size of the model: vit_tiny (default), vit_small, vit_base, vit_large, vit_huge; or timm/NAME for any
            model of timm.
        activation: Activation of every MLP: gelu (default), relu, silu, … or an import path to your own nn.Module; with
            a checkpoint or a model of timm its own, unless asked for.
        activation_kwargs: Options of the activation, for example {negative_slope: 0.1}.
        pretrained: Start from a checkpoint: a timm name with tag, hf-hub:OWNER/NAME, a file (.safetensors, .pth, .npz),
            a timm folder or a run folder; of timm/NAME, timm for its own weights.
        freeze: Do not train: backbone (all but the head), a number of blocks, or names such as [patch_embed, blocks.0].
        anneal_activation: Steps over which a checkpoint's activation is blended into the one asked for, instead of
            swapped at once.
        patch_size: Side of a patch in pixels (default 4), or [height, width]; must divide the image.
        embed_dim: Width of the tokens; the size's own if not given.
        depth: Number of blocks; the size's own if not given.
        num_heads: Attention heads; must divide the width.
        mlp_ratio: Hidden width of the MLP as a multiple of the width (default 4).
        pooling: What the head sees: cls (the class token; default) or mean (the average of the patch tokens).
        class_token: Whether there is a class token (default true); pooling cls needs it.
        position_embedding: learned (default), sincos2d or none.
        dropout: Dropout rate after projections and embeddings.
        attention_dropout: Dropout rate of attention weights.
        patch_dropout: Share of the patches left out of each training image.
        patch_dropout_until: Share of the training after which all patches are seen again.
        drop_path: Stochastic depth rate of the last block; earlier ones rise to it linearly.
        layer_scale: Initial LayerScale factor; off if not given.
        qk_norm: LayerNorm on queries and keys (default false).
        register_tokens: Number of register tokens (default 0).
        representation_size: Width of the paper's tanh pre-training head; a single linear head if not given.
        zero_init_head: Start the head at zero (default false; true for the new head of a checkpoint).
        stem: patch (linear patches; default), conv (overlapping convolutions), or resnet_stem, resnet26 or resnet50
            (the hybrid of the paper).
        attention: auto (the fastest by a measurement), explicit, matmul or strided (softmax written out),
            amx or avx512 (bfloat16 on some CPUs), triton (up to 128 tokens in half precision on a GPU), sdpa (torch's
            choice), flash, efficient, cudnn or math.
        attention_choice: What auto came to, [in training, in evaluation]; a run writes it into its config.yaml,
            so that it goes on and is repeated with the same arithmetic.
        residual_precision: full, or half: under a mixed precision the tokens between the blocks have 16 bits too,
            which is less to read and write, and rounds each block's sum.
        mlp_memory: fast, or lean: less memory, as MLPs compute their activation again for the backward pass.
        init: Scheme of the initial weights: timm, jax or mimetic.
        whiten_patches: Start the patch projection from the training images' second moments, which it whitens.
        compile: Compile the network with torch.compile; max-autotune: choose its matrix products by timing them, on a
            GPU, which takes minutes the first time.
        cuda_graphs: Replay the training step from a CUDA graph, whole where it can be recorded, else the compiled
            network; for small models on a GPU. auto: where there is one GPU and the whole can be recorded.
        optimizer: Any optimizer that torch or timm knows by name: adamw, sgd, muon, lion, …
        optimizer_kwargs: Its options, for example {betas: [0.9, 0.95]}.
        lr: Learning rate at the end of the warm-up.
        layer_decay: Factor on the learning rate from each layer to the one below, 0.65 to 0.9 for fine-tuning; off if
            not given.
        weight_decay: Of matrices and kernels; vectors, embeddings and activations have none.
        schedule: cosine, linear or constant.
        warmup_epochs: Length of the linear warm-up, in epochs; fractions are allowed.
        warmup_steps: The same in steps, instead.
        final_lr_fraction: Where the schedule ends, as a fraction of lr.
        label_smoothing: Share of the target spread over all classes.
        ema_decay: Decay per step of the moving average of the weights that is evaluated and saved; off if not given.
        seed: Fixes initial weights and noise; the command line's --seed.
    """

    against_recording = ""

    def __init__(
        self,
        name: str | None = None,
        activation: str | None = None,
        activation_kwargs: dict[str, Any] | None = None,
        pretrained: str | None = None,
        freeze: int | str | list[str] | None = None,
        anneal_activation: int | None = None,
        patch_size: int | list[int] | None = None,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        mlp_ratio: float | None = None,
        pooling: str | None = None,
        class_token: bool | None = None,
        position_embedding: str | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        patch_dropout: float = 0.0,
        patch_dropout_until: float = 1.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        qk_norm: bool | None = None,
        register_tokens: int | None = None,
        representation_size: int | None = None,
        zero_init_head: bool | None = None,
        stem: str | None = None,
        attention: str = "auto",
        attention_choice: list[str] | None = None,
        residual_precision: str = "full",
        mlp_memory: str = "fast",
        init: str = "timm",
        whiten_patches: bool = False,
        compile: bool | Literal["max-autotune"] = False,
        cuda_graphs: bool | Literal["auto"] = False,
        optimizer: str = "adamw",
        optimizer_kwargs: dict[str, Any] | None = None,
        lr: float = 1e-3,
        layer_decay: float | None = None,
        weight_decay: float = 0.05,
        schedule: str = "cosine",
        warmup_epochs: float = 0.0,
        warmup_steps: int | None = None,
        final_lr_fraction: float = 0.0,
        label_smoothing: float = 0.0,
        ema_decay: float | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"--model.label_smoothing {label_smoothing}: must lie in [0, 1)")
        if not 0 <= patch_dropout_until <= 1:
            raise ValueError(f"--model.patch_dropout_until {patch_dropout_until}: must lie between 0 and 1")
        if anneal_activation is not None:
            if anneal_activation < 1:
                raise ValueError(f"--model.anneal_activation {anneal_activation}: must be at least 1 step")
            for option, value in {"--model.pretrained": pretrained, "--activation": activation}.items():
                if value is None:
                    what = "to go to" if option == "--activation" else "whose activation is the old one"
                    raise ValueError(
                        f"--model.anneal_activation {anneal_activation}: needs {option} as well, {what}"
                    )
        if pretrained is not None and whiten_patches:
            raise ValueError(
                "--model.whiten_patches true: not with --model.pretrained, whose patches are learned"
            )
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
            "residual_precision": residual_precision,
            "mlp_memory": mlp_memory,
            "init": init,
            "seed": seed,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "pretrained": pretrained,
        }
        if is_timm(name):
            ours = {"whiten_patches": whiten_patches, "attention_choice": attention_choice}
            check_timm_options({**network_options, **ours})
        fill_defaults(network_options)
        del network_options["pretrained"]
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
            warmup_steps=warmup_steps,
            layer_decay=layer_decay,
        )
        self.pretrained, self.frozen_parts, self.anneal_steps = pretrained, freeze, anneal_activation
        self.checkpoint: Pretrained | None = None
        self.saved: dict[str, Any] | None = None
        self.beginning: Beginning | None = None
        self.images: list[str] = []  # how they were brought to what the checkpoint knows
        self.patch_dropout, self.patch_dropout_until = patch_dropout, patch_dropout_until
        self.whiten_patches = whiten_patches
        self.label_smoothing = label_smoothing

    def prepare(self, data: Any, saved: dict[str, Any] | None) -> None:
        """Read what the run starts from, and have the images come as that knows them: size, mean and deviation.

        A run that goes on has all of it in its own checkpoint: where the other one lay does not matter any more.
        """
        if saved is not None and self.pretrained is not None:
            check_same_start(saved, self.network_options, self.pretrained)
            self.saved = saved
            seen = saved["data"]
            data.follow(tuple(seen["image_size"]), lambda channels: (tuple(seen["mean"]), tuple(seen["std"])))
            return
        if is_timm(self.network_options["name"]):
            if self.pretrained not in (None, TIMMS_OWN):
                raise ValueError(
                    f"--model.pretrained {self.pretrained}: of {self.network_options['name']} only {TIMMS_OWN}, its "
                    "own weights; checkpoints are read into plain ViTs"
                )
            if self.pretrained is not None:
                size, mean, std = timm_images(self.network_options["name"])
                self.images = data.follow(size, lambda channels: (mean, std))
            return
        if self.pretrained is not None and self.checkpoint is None:
            self.checkpoint = read_pretrained(self.pretrained)
            height, width = pair("image_size", self.checkpoint.options["image_size"])
            self.images = data.follow((height, width), self.checkpoint.normalization)

    @property
    def description(self) -> dict[str, Any]:
        asked = super().description
        if self.pretrained is not None and self.origin is not None:
            asked["name"] = self.origin["name"]
        if self.net is None:
            return asked
        config = self.net.config
        final = config.get("anneal") or config
        own = config.get("native_activation")
        return asked | {
            "activation": final["activation"] or own,
            "activation_kwargs": dict(final["activation_kwargs"] or {}),
        }

    @property
    def origin(self) -> dict[str, Any] | None:
        return self.beginning.record if self.beginning is not None else None

    def configure_optimizers(self) -> Any:
        steps = self.trainer.estimated_stepping_batches
        if self.anneal_steps is not None and self.anneal_steps >= steps:
            raise ValueError(
                f"--model.anneal_activation {self.anneal_steps}: must end before the training does, after {steps} steps"
            )
        return super().configure_optimizers()

    def configure_model(self) -> None:
        """Build the network for the data at hand; a second call keeps what is there.

        Raises:
            ValueError: options that do not fit each other or the images.
        """
        if self.net is not None:
            return
        precision = str(self.trainer.precision)
        if self.network_options["residual_precision"] == "half" and not precision.endswith("-mixed"):
            raise ValueError(
                f"--model.residual_precision half: means nothing under --trainer.precision {precision}; "
                "take bf16-mixed, or --model.residual_precision full"
            )
        self.plan_speed()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        with torch.device(
            "cpu"
        ):  # where draws, files and images are; Lightning moves the whole network later
            self.net = self._build(data)
        if isinstance(self.net, VisionTransformer):
            self.attention_in_use = agree(
                self.trainer, self.net, data, self.attention_choice, compiled=self.compile_network
            )
        if self.compile_network:
            compile_network(
                self.net,
                self.trainer.strategy.root_device,
                cuda_graphs=self.graphs == "network",
                autotune=self.autotune,
            )

    def _build(self, data: Any) -> Network:
        """The network as this training starts it, and what is told of it."""
        if self.checkpoint is None and self.saved is None:
            self.prepare(data, None)  # a Trainer of one's own calls nothing before
        if self.saved is not None:
            self.beginning = begin_again(self.saved)
        else:
            self.beginning = begin(
                self.network_options,
                data,
                pretrained=self.checkpoint or self.pretrained,
                anneal_steps=self.anneal_steps,
            )
            self.beginning.say_first(self.images)
        net = self.beginning.network
        frozen = freeze_parts(net, self.frozen_parts)
        if self.saved is None:
            self.beginning.say(
                about_frozen(
                    net, self.frozen_parts, frozen, self.layer_decay, learned=self.pretrained is not None
                )
            )
        self.checkpoint = self.saved = (
            None  # a second copy of all weights, in every process and in the average
        )
        if self.trainer.is_global_zero:
            print(*self.beginning.lines, sep="\n", end="\n" if self.beginning.lines else "", flush=True)
        self.score = ExactScore(data.num_classes, sum_dtype(self.trainer.strategy.root_device))
        if isinstance(net, VisionTransformer) and self.whiten_patches:
            whiten_patches(net, data.sample_images(WHITENING_IMAGES), seed=self.seed)
        return net

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if self.beginning is not None and self.beginning.anneal is not None and self.anneal_steps is not None:
            self._anneal(self.beginning.anneal, anneal_share(self.trainer.global_step, self.anneal_steps))
        if self.patch_dropout and isinstance(self.network, VisionTransformer):
            steps = self.patch_dropout_until * self.trainer.estimated_stepping_batches
            self.network.patch_drop.p = self.patch_dropout if self.trainer.global_step < steps else 0.0

    def _anneal(self, anneal: AnnealHandle, share: float) -> None:
        if share < 1:
            anneal.set_alpha(share)
        elif not anneal.finished:
            anneal.finish()
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, AveragedWeights):
                    callback.finish_annealing()

    def held_fast(self) -> Any:
        anneal = self.beginning.anneal if self.beginning is not None else None
        annealing = anneal is not None and not anneal.finished  # its share differs from step to step
        return None if annealing else self.patches_left_out

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Loss of one batch.

        Returns:
            See ``step_output``; ``correct`` is an int64 scalar: how often the likeliest class is the target, or
            the larger part of a mixed target.
        """
        batch = self.step_graph.inputs(batch)
        if self.graphs == "network":
            torch.compiler.cudagraph_mark_step_begin()
        logits = self.network(batch.images)
        targets = batch.targets
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)
        with torch.no_grad():
            labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
            correct = (logits.argmax(dim=1) == labels).sum()
        return self.step_output(loss, batch_idx, correct=correct)

    def evaluation_step(self, batch: Any) -> None:
        # .forward, not __call__: evaluation runs eagerly, so odd batch sizes compile nothing.
        logits = self.network.forward(batch.images)
        assert self.score is not None
        self.score.update(logits, batch.targets)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluation_step(batch)

    def on_test_epoch_end(self) -> None:
        self._evaluation_end("test")
