"""The parts of a transformer block: MLP, LayerScale, stochastic depth, and the block itself."""

from typing import Any

import torch
from einops import repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vit_gelu.activations import build_activation
from vit_gelu.activations.trial import check_result
from vit_gelu.models.attention import Attention
from vit_gelu.models.linear import Linear
from vit_gelu.models.options import MLP_MEMORIES, choice, rate, whole


def hidden_size(dim: int, mlp_ratio: float, *, gated: bool = False) -> int:
    """Hidden units of an MLP: ``dim * mlp_ratio``, or fewer if gated, for an equal number of parameters.

    A gated MLP has three matrices where a plain one has two, so it gets about 2/3 of the units (Shazeer 2020,
    arXiv:2002.05202, §3). Biases count too: 3·d·h + 2·h + d = 2·d·H + H + d gives h = H·(2d + 1)/(3d + 2).
    That is rounded to a multiple of 8, which suits the hardware, or else of 4 or 2, as long as this moves it
    by no more than 1.2 % (0.8 % of a block).

    >>> hidden_size(192, 4), hidden_size(192, 4, gated=True)
    (768, 512)
    """
    plain = int(dim * mlp_ratio)
    if not gated:
        return plain
    exact = plain * (2 * dim + 1) / (3 * dim + 2)
    for multiple in (8, 4, 2):
        rounded = multiple * round(exact / multiple)
        if abs(rounded - exact) <= 0.012 * exact:
            return rounded
    return max(1, round(exact))


class Mlp(nn.Module):
    """fc1, activation, fc2: ViT paper (arXiv:2010.11929), §3.1. Names are timm's.

    Args:
        dim: width of the tokens.
        hidden: units after the activation; a gated one gets twice as many from ``fc1``.
        activation: a name or import path that ``build_activation`` knows; this MLP builds its own object.
        activation_kwargs: the activation's own options.
        dropout: after the activation and after ``fc2``.
        memory: ``fast``, or ``lean``: of the hidden tensors only the output of ``fc1`` is kept for the backward
            pass, which computes the activation again (with the same noise), but no matrix product.

    Shapes: (..., dim) -> (..., dim).

    Raises:
        ValueError: unknown activation, option or memory, hidden < 1, a rate outside [0, 1).
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        activation: str = "gelu",
        activation_kwargs: dict[str, Any] | None = None,
        dropout: float = 0.0,
        memory: str = "fast",
    ) -> None:
        super().__init__()
        whole("mlp_hidden", hidden)
        self.memory = choice("mlp_memory", memory, MLP_MEMORIES)
        act = build_activation(activation, **(activation_kwargs or {}))
        self.fc1 = Linear(dim, 2 * hidden if getattr(act, "gated", False) else hidden)
        check_result(act, activation, self.fc1.out_features, hidden)
        self.act = act
        self.drop1 = nn.Dropout(rate("dropout", dropout))
        self.fc2 = Linear(hidden, dim)
        self.drop2 = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        if self.memory == "lean" and torch.is_grad_enabled():
            # The recomputation ends with the last tensor that was to be kept: the input of fc2's product.
            out = checkpoint(self._from_hidden, hidden, use_reentrant=False)
        else:
            out = self._from_hidden(hidden)
        return self.drop2(out)

    def _from_hidden(self, hidden: Tensor) -> Tensor:
        return self.fc2(self.drop1(self.act(hidden)))

    def extra_repr(self) -> str:
        return "" if self.memory == "fast" else f"memory={self.memory!r}"


class LayerScale(nn.Module):
    """x·γ with γ learned per channel: Touvron et al. 2021, CaiT (arXiv:2103.17239), Eq. 4.

    Args:
        dim: channels.
        init: where every γ starts.
    """

    def __init__(self, dim: int, init: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth, per sample: a residual branch is dropped, or divided by its chance of being kept.

    Huang et al. 2016 (arXiv:1603.09382), §3. In evaluation x is returned as it is.

    Args:
        p: chance of dropping the branch, 0 <= p < 1.

    Shapes: (b, ...) -> (b, ...).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = rate("drop_path", p)

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * keep / (1 - self.p)  # keep / (1 - p) would be rounded, and the mean wrong, in bfloat16

    def extra_repr(self) -> str:
        return f"p={self.p:.3f}"


class _Taken(torch.autograd.Function):
    """Rows of each sample, none twice: so that each row of the gradient is read from one place, or is zero.

    Autograd would add into a tensor of zeros, which compiled code does number by number. Without ``jvp``, which
    torch.compile does not trace.
    """

    @staticmethod
    def forward(x: Tensor, indices: Tensor) -> Tensor:
        return _rows(x, indices)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, indices = inputs
        ctx.save_for_backward(indices)
        ctx.num_patches = x.shape[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        b, k = indices.shape
        order = torch.arange(k, device=indices.device).expand(b, k)
        place = indices.new_full((b, ctx.num_patches), k).scatter(1, indices, order)  # k: not taken
        rows = _rows(grad, place.clamp(max=k - 1))
        return torch.where((place < k)[..., None], rows, 0.0), None


def _rows(x: Tensor, indices: Tensor) -> Tensor:
    return x.gather(1, repeat(indices, "b k -> b k d", d=x.shape[2]))


def take_patches(x: Tensor, indices: Tensor) -> Tensor:
    """Rows of each sample, none of them twice: (b, n, d) and int64 indices (b, k) -> (b, k, d)."""
    return _Taken.apply(x, indices) if torch.compiler.is_compiling() else _rows(x, indices)


class PatchDropout(nn.Module):
    """A random subset of the patch tokens, drawn per sample: fewer tokens, a faster step, and a regulariser.

    Liu et al. 2023, PatchDropout (arXiv:2208.07220), §3. In evaluation, and at rate 0, all tokens stay.

    Args:
        p: share of the patches that are dropped, 0 <= p < 1; at least one patch stays. May be changed between
            steps.
        num_prefix_tokens: class and register tokens in front, which always stay.

    Shapes: (b, prefix + patches, d) -> (b, prefix + kept, d), kept = max(1, round(patches * (1 - p))), in
    random order (the position is in the token already).
    """

    def __init__(self, p: float, num_prefix_tokens: int) -> None:
        super().__init__()
        self.p = rate("patch_dropout", p)
        self.num_prefix_tokens = num_prefix_tokens

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        b, n, _ = patches.shape
        keep = max(1, round(n * (1 - self.p)))
        # The largest of n uniform numbers per sample: a uniformly random subset.
        kept = torch.rand(b, n, device=x.device).topk(keep, dim=1).indices
        patches = take_patches(patches, kept)
        return torch.cat([prefix, patches], dim=1) if self.num_prefix_tokens else patches

    def extra_repr(self) -> str:
        return f"p={self.p:.3f}"


class Block(nn.Module):
    """Pre-norm transformer block: ViT paper (arXiv:2010.11929), Eq. 2 and 3. Names are timm's.

    Args:
        dim: width of the tokens.
        num_heads: must divide ``dim``.
        hidden: hidden units of the MLP.
        layer_scale: initial γ of both residual branches; None: no LayerScale.
        drop_path: chance of dropping a branch.
        others: see ``Attention`` and ``Mlp``.

    Shapes: (b, n, dim) -> (b, n, dim), or (b, m, dim) if only the first m tokens are asked for.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int,
        *,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        activation: str = "gelu",
        activation_kwargs: dict[str, Any] | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        norm_eps: float = 1e-6,
        attention: str = "auto",
        mlp_memory: str = "fast",
    ) -> None:
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(
            dim,
            num_heads,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            attention_dropout=attention_dropout,
            dropout=dropout,
            norm_eps=norm_eps,
            attention=attention,
        )
        self.ls1 = scale()
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, hidden, activation, activation_kwargs, dropout, mlp_memory)
        self.ls2 = scale()
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """``first``: compute these tokens alone, the first m; the others still serve them as keys and values."""
        y = self.norm1(x)
        if first is None:
            y = self.attn(y)
        else:
            x, y = x[:, :first], self.attn(y, first)
        # In half precision the tokens stay so, whatever a float32 LayerScale makes of a branch.
        x = (x + self.drop_path1(self.ls1(y))).to(x.dtype)
        return (x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))).to(x.dtype)
