"""The Vision Transformer of Dosovitskiy et al. 2020 (arXiv:2010.11929), and its sizes."""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from einops import repeat
from torch import Tensor, nn

from vit_gelu.activations import build_activation
from vit_gelu.models import options
from vit_gelu.models.initialisation import initialise
from vit_gelu.models.layers import Attention, Block, PatchDropout, hidden_size
from vit_gelu.models.position import sincos2d
from vit_gelu.models.stem import build_stem
from vit_gelu.randomness import key
from vit_gelu.suggest import nearest, unknown


class Size(NamedTuple):
    """Width, depth and heads; MLP size is 4 × width throughout."""

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int = 16


# B, L, H: ViT paper, Table 1. Ti, S: DeiT (arXiv:2012.12877), Table 1.
VIT_SIZES = {
    "vit_tiny": Size(192, 12, 3),
    "vit_small": Size(384, 12, 6),
    "vit_base": Size(768, 12, 12),
    "vit_large": Size(1024, 24, 16),
    "vit_huge": Size(1280, 32, 16, patch_size=14),
}


class VisionTransformer(nn.Module):
    """Vision Transformer: ViT paper (arXiv:2010.11929), Eq. 1–4. Parameter names are timm's.

    Args:
        image_size: pixels, one number or (height, width).
        patch_size: pixels of the image that one token covers, one number or (height, width).
        in_channels: channels of the images.
        num_classes: classes; 0 leaves the head out, and the features come out.
        embed_dim: width of the tokens.
        depth: number of blocks.
        num_heads: attention heads; must divide embed_dim.
        mlp_ratio: hidden units of the MLP over embed_dim; a gated MLP gets fewer, for equal parameters.
        mlp_hidden: hidden units of the MLP (after the gate, if gated), instead of mlp_ratio.
        activation: of the MLP, a name or import path; each block gets an object of its own.
        activation_kwargs: the activation's own options.
        pooling: what the head sees: cls (the class token) or mean (over the patches).
        class_token: prepend a class token; pooling cls needs it.
        position_embedding: learned, sincos2d (fixed) or none: ViT paper, appendix D.4.
        no_embed_class: position embeddings for the patches only, not for class and register tokens.
        register_tokens: extra learned tokens (Darcet et al. 2023, arXiv:2309.16588).
        dropout: after every dense layer but qkv and the head, and after the position embedding
            (ViT paper, appendix B.1).
        attention_dropout: of the attention weights.
        patch_dropout: share of the patch tokens left out in training, per sample (arXiv:2208.07220).
        drop_path: chance of dropping a residual branch in the last block; grows linearly from 0 in the first.
        layer_scale: initial LayerScale of the branches; null: none.
        qkv_bias: bias of the query, key and value projections.
        qk_norm: LayerNorm of queries and keys.
        pre_norm: norm between embedding and blocks, and no bias in the patch projection (CLIP).
        fc_norm: final norm after the pooling instead of before; null: with pooling mean.
        norm_eps: epsilon of all norms.
        representation_size: units of a tanh layer before the head (ViT paper, §3.1); null: none.
        zero_init_head: start the head at zero.
        stem: patch, conv (overlapping convolutions; arXiv:2106.14881), or a ResNet before the patches:
            resnet_stem, resnet26, resnet50 (the paper's hybrid). The activation of conv and ResNets is ReLU.
        attention: auto, explicit (softmax written out), sdpa (fused) or another name in
            ``attention_kernels.KERNELS``; see ``set_attention``.
        residual_precision: what autocast leaves of the tokens between the blocks: full (float32), or half (its own
            16 bits: less memory and traffic, each block's sum is rounded). Without autocast, no difference.
        mlp_memory: fast, or lean: the MLPs keep one hidden tensor for the backward pass, not two or more, and
            compute their activation again.
        init: timm, jax or mimetic; see ``vit_gelu.models.initialisation``.
        seed: fixes the initial weights; null: drawn from torch's global generator.

    Attributes:
        config: these arguments as plain values, so that ``VisionTransformer(**config)`` is the same model.
        num_tokens: length of the sequence in the blocks.

    Shapes: float images (b, in_channels, height, width) -> logits (b, num_classes).

    With pooling cls, nothing depends on what the last block makes of the other tokens, so a call of the model
    computes the class token alone there (at depth 12, 7 % less arithmetic; equal logits and gradients).
    ``forward_features`` gives all tokens, and shows all to hooks.

    Raises:
        ValueError: an option or a combination that makes no model.

    >>> vit = VisionTransformer(32, 4, num_classes=10, embed_dim=24, depth=2, num_heads=3, activation="relu")
    >>> vit(torch.zeros(5, 3, 32, 32)).shape, vit.num_tokens
    (torch.Size([5, 10]), 65)
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 16,
        in_channels: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        mlp_hidden: int | None = None,
        activation: str = "gelu",
        activation_kwargs: dict[str, Any] | None = None,
        pooling: str = "cls",
        class_token: bool = True,
        position_embedding: str = "learned",
        no_embed_class: bool = False,
        register_tokens: int = 0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        patch_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        pre_norm: bool = False,
        fc_norm: bool | None = None,
        norm_eps: float = 1e-6,
        representation_size: int | None = None,
        zero_init_head: bool = False,
        stem: str = "patch",
        attention: str = "auto",
        residual_precision: str = "full",
        mlp_memory: str = "fast",
        init: str = "timm",
        seed: int | None = None,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        height_width = options.pair("image_size", image_size)
        patch = options.pair("patch_size", patch_size)
        for name in ("in_channels", "embed_dim", "depth", "num_heads"):
            options.whole(name, config[name])
        options.whole("num_classes", num_classes, minimum=0)
        options.whole("register_tokens", register_tokens, minimum=0)
        for name in ("mlp_ratio", "norm_eps"):
            options.positive(name, config[name])
        options.choice("pooling", pooling, options.POOLINGS)
        options.choice("position_embedding", position_embedding, options.POSITION_EMBEDDINGS)
        options.choice("init", init, options.INITS)
        options.choice("residual_precision", residual_precision, options.RESIDUAL_PRECISIONS)
        if layer_scale is not None:
            options.positive("layer_scale", layer_scale)
        if pooling == "cls" and not class_token:
            raise ValueError(
                "--model.pooling cls needs --model.class_token true; without it, use --model.pooling mean"
            )
        drop_path = options.rate("drop_path", drop_path)
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise ValueError(f"--model.seed {seed}: must be a whole number, or null")
        if seed is None:
            seed = int(torch.randint(2**62, (), device="cpu"))
        self.config: dict[str, Any] = copy.deepcopy(
            {
                **config,
                "image_size": list(height_width),
                "patch_size": list(patch),
                "activation_kwargs": dict(activation_kwargs or {}),
                "seed": seed,
            }
        )
        norm_last = pooling == "mean" if fc_norm is None else fc_norm
        self.pooling = pooling
        self.residual_precision = residual_precision
        self.num_prefix_tokens = int(class_token) + register_tokens

        # torch's layers draw weights as they are built. All are drawn again below, by name, except those of
        # a ResNet stem and of activations, which this makes a function of the seed.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key(seed, "init", "construction"))
            gated = getattr(build_activation(activation, **(activation_kwargs or {})), "gated", False)
            hidden = hidden_size(embed_dim, mlp_ratio, gated=gated) if mlp_hidden is None else mlp_hidden
            self.patch_embed = build_stem(
                stem, height_width, patch, in_channels, embed_dim, bias=not pre_norm, norm_eps=norm_eps
            )
            self.num_tokens = self.num_prefix_tokens + self.patch_embed.num_patches
            self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
            self.reg_token = (
                nn.Parameter(torch.zeros(1, register_tokens, embed_dim)) if register_tokens else None
            )
            self.pos_embed: Tensor | None = None
            self._add_position_embedding(position_embedding, embed_dim, no_embed_class)
            self.pos_drop = nn.Dropout(options.rate("dropout", dropout))
            self.patch_drop = PatchDropout(patch_dropout, self.num_prefix_tokens)
            self.norm_pre = nn.LayerNorm(embed_dim, eps=norm_eps) if pre_norm else nn.Identity()
            self.blocks = nn.Sequential(
                *(
                    Block(
                        embed_dim,
                        num_heads,
                        hidden,
                        qkv_bias=qkv_bias,
                        qk_norm=qk_norm,
                        activation=activation,
                        activation_kwargs=activation_kwargs,
                        dropout=dropout,
                        attention_dropout=attention_dropout,
                        drop_path=drop_path * i / max(1, depth - 1),
                        layer_scale=layer_scale,
                        norm_eps=norm_eps,
                        attention=attention,
                        mlp_memory=mlp_memory,
                    )
                    for i in range(depth)
                )
            )
            self.norm = nn.Identity() if norm_last else nn.LayerNorm(embed_dim, eps=norm_eps)
            self.fc_norm = nn.LayerNorm(embed_dim, eps=norm_eps) if norm_last else nn.Identity()
            features = embed_dim
            self.pre_logits: nn.Module = nn.Identity()
            if representation_size is not None:
                features = options.whole("representation_size", representation_size)
                fc = nn.Linear(embed_dim, features)
                self.pre_logits = nn.Sequential(OrderedDict(fc=fc, act=nn.Tanh()))
            self.head = nn.Linear(features, num_classes) if num_classes else nn.Identity()
        initialise(self, seed, init, zero_head=zero_init_head)

    def _add_position_embedding(self, kind: str, dim: int, no_embed_class: bool) -> None:
        """``pos_embed`` (1, tokens, dim): a parameter, or a buffer of the same name if it is fixed."""
        prefix = 0 if no_embed_class else self.num_prefix_tokens
        self._embeds_prefix = not no_embed_class
        if kind == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, prefix + self.patch_embed.num_patches, dim))
        elif kind == "sincos2d":
            del self.pos_embed
            table = torch.cat([torch.zeros(prefix, dim), sincos2d(self.patch_embed.grid_size, dim)])
            self.register_buffer("pos_embed", table[None])

    def set_attention(self, attention: str) -> None:
        """Choose how all blocks compute attention from now on; ``config`` remembers it.

        A compiled model is compiled again at its next call.

        Raises:
            ValueError: neither ``auto`` nor a name in ``attention_kernels.KERNELS``, or one without dropout
                where there is some.
        """
        self.use_attention(attention, attention)
        self.config["attention"] = attention

    def use_attention(self, training: str, evaluation: str) -> None:
        """As ``set_attention``, by mode, and ``config`` keeps what was asked for: what a measurement came to."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.set_kernels(training, evaluation)

    @property
    def attention_in_use(self) -> tuple[str, str]:
        """What computes attention in training and in evaluation: the arguments of ``use_attention``."""
        module = next(m for m in self.modules() if isinstance(m, Attention))
        return module.kernel_training, module.kernel_evaluation

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters, other than biases and norms, that weight decay should leave alone."""
        tokens = {"pos_embed", "cls_token", "reg_token"}
        return {
            name
            for name, parameter in self.named_parameters()
            if name in tokens or getattr(parameter, "no_weight_decay", False)
        }

    def embed(self, images: Tensor) -> Tensor:
        """ViT paper, Eq. 1: (b, c, h, w) -> (b, num_tokens, embed_dim); order: class, registers, patches."""
        x = self.patch_embed(images)
        if self.pos_embed is not None and not self._embeds_prefix:
            x = x + self.pos_embed
        prefix = [
            repeat(token, "1 n d -> b n d", b=x.shape[0])
            for token in (self.cls_token, self.reg_token)
            if token is not None
        ]
        if prefix:
            x = torch.cat([*prefix, x], dim=1)
        if self.pos_embed is not None and self._embeds_prefix:
            x = x + self.pos_embed
        return self._residual(self.norm_pre(self.patch_drop(self.pos_drop(x))))

    def _residual(self, x: Tensor) -> Tensor:
        """Tokens as the blocks add to them: under autocast in the precision that was asked for."""
        device_type = x.device.type
        if not torch.is_autocast_enabled(device_type):
            return x
        # Without position embeddings and tokens in front, patches are in half precision as they come.
        half = self.residual_precision == "half"
        return x.to(torch.get_autocast_dtype(device_type) if half else torch.float32)

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w) -> tokens after the last block and norm, (b, num_tokens, embed_dim)."""
        return self.norm(self.blocks(self.embed(images)))

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (b, num_tokens, embed_dim) -> logits (b, num_classes), or what the head sees, (b, features)."""
        pooled = tokens[:, 0] if self.pooling == "cls" else tokens[:, self.num_prefix_tokens :].mean(dim=1)
        features = self.pre_logits(self.fc_norm(pooled))
        return features if pre_logits else self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        if self.pooling != "cls":
            return self.forward_head(self.forward_features(images))
        x = self.embed(images)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        return self.forward_head(self.norm(last(x, first=1)))


def build_vit(name: str, **overrides: Any) -> VisionTransformer:
    """A ViT of a named size; any option of ``VisionTransformer`` may be given, and wins.

    Args:
        name: a key of ``VIT_SIZES``.
        overrides: options of ``VisionTransformer``.

    Raises:
        ValueError: unknown name or option (with the nearest), or options that make no model.

    >>> vit = build_vit("vit_tiny", image_size=32, patch_size=4, num_classes=10, activation="relu")
    >>> sum(p.numel() for p in vit.parameters())
    5362762
    """
    if name not in VIT_SIZES:
        raise ValueError(f"--model.name: {unknown('model', name, VIT_SIZES)}")
    known = list(VisionTransformer.__init__.__annotations__)
    known.remove("return")
    for option in overrides:
        if option not in known:
            close = nearest(option, known, n=1)
            hint = f" Did you mean --model.{close[0]}?" if close else ""
            raise ValueError(f"--model.{option}: no such option.{hint} Options: {', '.join(known)}")
    return VisionTransformer(**{**VIT_SIZES[name]._asdict(), **overrides})
