"""Masked pre-training: a network learns without labels. Its signature is ``--model.*`` of ``vit-gelu pretrain``."""

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from vit_gelu.models import VisionTransformer, build_vit
from vit_gelu.models.attention import Attention
from vit_gelu.models.attention_choice import usable
from vit_gelu.models.masked import MaskedAutoencoder, MaskedDecoder, draw_visible, visible_count
from vit_gelu.randomness import key
from vit_gelu.training.attention import agree, shapes
from vit_gelu.training.base import RunModule
from vit_gelu.training.compilation import compile_network
from vit_gelu.training.flops import flops_of
from vit_gelu.training.metrics import ExactLoss, sum_dtype

# Of validation: one mask per image, whatever the run, so that losses compare over epochs and runs.
VALIDATION_MASKS = key(0, "noise", "validation masks")


class MaskedModule(RunModule):
    """A Vision Transformer that learns to see by drawing masked patches: MAE, arXiv:2111.06377.

    Image size and channels come from the data when training starts. The network has no head.

    Args:
        name: Size of the model: vit_tiny, vit_small, vit_base, vit_large, vit_huge.
        activation: Activation of every MLP: gelu, relu, silu, … or an import path to your own nn.Module.
        activation_kwargs: Options of the activation, for example {negative_slope: 0.1}.
        patch_size: Side of a patch in pixels, or [height, width]; must divide the image.
        embed_dim: Width of the tokens; the size's own if not given.
        depth: Number of blocks; the size's own if not given.
        num_heads: Attention heads; must divide the width.
        mlp_ratio: Hidden width of the MLP as a multiple of the width.
        pooling: What a head will see when the network is used: cls (the class token) or mean (of the patches).
        class_token: Whether there is a class token; pooling cls needs it.
        position_embedding: learned, sincos2d or none.
        dropout: Dropout rate after projections and embeddings.
        attention_dropout: Dropout rate of attention weights.
        drop_path: Stochastic depth rate of the last block; earlier ones rise to it linearly.
        layer_scale: Initial LayerScale factor; off if not given.
        qk_norm: LayerNorm on queries and keys.
        register_tokens: Number of register tokens.
        mask_ratio: Share of the patches of each image that the network must do without.
        norm_pixels: Predict each patch less its mean, over its standard deviation.
        decoder_embed_dim: Width of the decoder's tokens; a multiple of 4 and of its heads.
        decoder_depth: Number of the decoder's blocks.
        decoder_num_heads: Attention heads of the decoder.
        attention: auto (the fastest by a measurement), explicit, matmul or strided (softmax written out),
            amx or avx512 (bfloat16 on some CPUs), triton (up to 128 tokens in half precision on a GPU), sdpa (torch's
            choice), flash, efficient, cudnn or math.
        attention_choice: What auto came to, [in training, in evaluation]; a run writes it into its config.yaml,
            so that it goes on and is repeated with the same arithmetic.
        mlp_memory: fast, or lean: less memory, as MLPs compute their activation again for the backward pass.
        init: Scheme of the initial weights: timm, jax or mimetic.
        compile: Compile network and decoder with torch.compile; max-autotune: choose their matrix products by timing
            them, on a GPU.
        cuda_graphs: Replay the compiled network from CUDA graphs; for small models on a GPU. auto: do not.
        optimizer: Any optimizer that torch or timm knows by name: adamw, sgd, muon, lion, …
        optimizer_kwargs: Its options, for example {betas: [0.9, 0.95]}.
        lr: Learning rate at the end of the warm-up.
        weight_decay: Of matrices and kernels; vectors, embeddings and activations have none.
        schedule: cosine, linear or constant.
        warmup_epochs: Length of the linear warm-up, in epochs; fractions are allowed.
        final_lr_fraction: Where the schedule ends, as a fraction of lr.
        ema_decay: Decay per step of the moving average of the weights that is evaluated and saved; off if not given.
        seed: Fixes initial weights, masks and noise; the command line's --seed.
    """

    objective = "masked"
    splits = ("val",)
    continued = ("network", "data", "masked")
    against_recording = "the masks of a step are drawn on the processor"

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
        position_embedding: str = "sincos2d",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        qk_norm: bool = False,
        register_tokens: int = 0,
        mask_ratio: float = 0.75,
        norm_pixels: bool = True,
        decoder_embed_dim: int = 128,
        decoder_depth: int = 2,
        decoder_num_heads: int = 4,
        attention: str = "auto",
        attention_choice: list[str] | None = None,
        mlp_memory: str = "fast",
        init: str = "timm",
        compile: bool | Literal["max-autotune"] = False,
        cuda_graphs: bool | Literal["auto"] = False,
        optimizer: str = "adamw",
        optimizer_kwargs: dict[str, Any] | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        schedule: str = "cosine",
        warmup_epochs: float = 0.0,
        final_lr_fraction: float = 0.0,
        ema_decay: float | None = None,
        seed: int = 0,
    ) -> None:
        if isinstance(mask_ratio, bool) or not 0 < mask_ratio < 1:
            raise ValueError(f"--model.mask_ratio {mask_ratio}: must lie between 0 and 1")
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
            "drop_path": drop_path,
            "layer_scale": layer_scale,
            "qk_norm": qk_norm,
            "register_tokens": register_tokens,
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
        self.mask_ratio = mask_ratio
        self.norm_pixels = norm_pixels
        self.decoder_options = {
            "embed_dim": decoder_embed_dim,
            "depth": decoder_depth,
            "num_heads": decoder_num_heads,
        }
        self.init = init
        self.decoder: MaskedDecoder | None = None
        self._held: tuple[MaskedAutoencoder, ...] = ()

    @property
    def autoencoder(self) -> MaskedAutoencoder:
        """Network and decoder as one."""
        assert self._held, "configure_model has not run"
        return self._held[0]

    @property
    def learning(self) -> MaskedAutoencoder:
        return self.autoencoder

    @property
    def network(self) -> VisionTransformer:
        assert isinstance(self.net, VisionTransformer), "configure_model has not run"
        return self.net

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return self.network.patch_embed.num_patches

    @property
    def visible(self) -> int:
        """Patches of an image that the network is shown."""
        return visible_count(self.num_patches, self.mask_ratio)

    @property
    def patches_left_out(self) -> float:
        return self.mask_ratio

    def configure_model(self) -> None:
        """Build network and decoder for the data at hand; a second call keeps what is there.

        Raises:
            ValueError: options that do not fit each other or the images.
        """
        if self.net is not None:
            return
        self.plan_speed()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        for option in ("mixup", "cutmix"):
            if getattr(data, option):
                raise ValueError(
                    f"--data.{option} {getattr(data, option)}: mixes labels, and masked pre-training has none; "
                    "set it to 0"
                )
        with torch.device("cpu"):  # where draws are; Lightning moves the whole networks later
            net = build_vit(
                image_size=data.image_size,
                in_channels=data.in_channels,
                num_classes=0,
                **self.network_options,
            )
            self.decoder = MaskedDecoder(net, **self.decoder_options, init=self.init, seed=self.seed)
            self.score = ExactLoss(sum_dtype(self.trainer.strategy.root_device))
        visible = visible_count(net.patch_embed.num_patches, self.mask_ratio)
        # In a tuple: as a module of ours, every weight would be in the checkpoint twice.
        self._held = (MaskedAutoencoder(net, self.decoder, norm_pixels=self.norm_pixels),)
        self.net = net
        self.attention_in_use = agree(
            self.trainer, net, data, self.attention_choice, compiled=self.compile_network, visible=visible
        )
        self._choose_for_decoder(data)
        if self.compile_network:
            compile_network(
                self.autoencoder,
                self.trainer.strategy.root_device,
                cuda_graphs=self.graphs == "network",
                autotune=self.autotune,
            )

    def _choose_for_decoder(self, data: Any) -> None:
        """The decoder's attention follows the network's; where that cannot compute it, the rule decides for auto.

        Raises:
            ValueError: a kernel that was asked for, and cannot.
        """
        assert self.decoder is not None
        assert self.attention_in_use is not None
        used, device = self.attention_in_use, self.trainer.strategy.root_device
        batch = math.ceil(data.global_batch_size / self.trainer.world_size)
        both = shapes(self.network, batch, str(self.trainer.precision), device.type, self.compile_network)
        heads = self.decoder_options["num_heads"]
        kernels = []
        for kernel, shape in zip((used.training, used.evaluation), both, strict=True):
            mine = replace(
                shape, heads=heads, head_dim=self.decoder_options["embed_dim"] // heads, dropout=False
            )
            able = usable(kernel, mine, device)
            if not able and self.network.config["attention"] != "auto":
                raise ValueError(
                    f"--model.attention {kernel}: cannot compute the decoder ({heads} heads of {mine.head_dim}) in "
                    f"{mine.dtype} on {device.type}; set it to auto, or change --model.decoder_num_heads"
                )
            kernels.append(kernel if able else mine.default)
        for module in self.decoder.modules():
            if isinstance(module, Attention):
                module.set_kernels(*kernels)
        self.attention_in_use = replace(used, why=f"{used.why}; decoder: {', '.join(kernels)}")

    def count_flops(self, image_shape: tuple[int, int, int], patches_left_out: float) -> int:
        """Floating-point operations of one image's step, network and decoder; see ``speed.flops_of``."""
        parameter = next(self.network.parameters())
        image = torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype)
        visible = torch.arange(visible_count(self.num_patches, patches_left_out), device=image.device)[None]
        return flops_of(self.autoencoder, lambda: self.autoencoder.forward(image, visible))

    def validation_visible(self, indices: Tensor) -> Tensor:
        """Visible patches of validation images, by their index in the split alone: int64, (b, visible)."""
        return draw_visible(VALIDATION_MASKS, indices, self.num_patches, self.visible)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._mask_key = key(self.seed, "noise", self.batches_seen, "masks")
        super().on_train_batch_start(batch, batch_idx)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Loss of one batch, masked by (seed, step, sample); see ``step_output``."""
        if self.graphs == "network":
            torch.compiler.cudagraph_mark_step_begin()
        visible = draw_visible(self._mask_key, batch.indices, self.num_patches, self.visible)
        return self.step_output(self.autoencoder(batch.images, visible).mean(), batch_idx)

    def evaluation_step(self, batch: Any) -> None:
        assert self.score is not None
        # .forward, not __call__: evaluation runs eagerly, so odd batch sizes compile nothing.
        self.score.update(self.autoencoder.forward(batch.images, self.validation_visible(batch.indices)))

    def card(self) -> dict[str, Any]:
        assert self.decoder is not None
        masked = {
            "mask_ratio": self.mask_ratio,
            "norm_pixels": self.norm_pixels,
            "decoder": self.decoder.config,
        }
        return super().card() | {"masked": masked}
