"""Multi-head self-attention (ViT paper, appendix A); what computes it is in ``attention_kernels``."""

import torch
from einops import rearrange
from torch import Tensor, nn

from vit_gelu.models.attention_kernels import KERNELS, WITHOUT_DROPOUT, few_queries, on_chip
from vit_gelu.models.linear import Linear, linear, may_be_split
from vit_gelu.models.options import ATTENTIONS, choice, must_divide, rate
from vit_gelu.models.triton_shapes import beside_a_tile

EXPLICIT_UP_TO = 256  # tokens; on a CPU the fused kernel's backward pass only pays off for longer sequences


def resolve_attention(attention: str, tokens: int, device_type: str) -> str:
    """Which kernel runs: ``attention`` itself, and for ``auto`` what a rule says without any measurement.

    The rule: explicit on a CPU up to 256 tokens, torch's fused kernel elsewhere. Training replaces it by a
    measured choice, see ``attention_choice``.

    >>> resolve_attention("auto", 65, "cpu"), resolve_attention("auto", 65, "cuda")
    ('explicit', 'sdpa')
    """
    if attention == "auto":
        return "explicit" if device_type == "cpu" and tokens <= EXPLICIT_UP_TO else "sdpa"
    return attention


class Attention(nn.Module):
    """softmax(q·kᵀ/√d)·v per head: ViT paper (arXiv:2010.11929), Eq. 5–8. Names are timm's.

    Args:
        dim: width of the tokens.
        num_heads: must divide ``dim``.
        qkv_bias: bias in the query, key and value projections.
        qk_norm: LayerNorm of each head's queries and keys (Dehghani et al. 2023, arXiv:2302.05442, §2.1).
        attention_dropout: dropout of the attention weights.
        dropout: dropout after the output projection.
        norm_eps: epsilon of the two norms.
        attention: ``auto`` (see ``resolve_attention``) or a name in ``KERNELS``.

    Attributes:
        kernel_training, kernel_evaluation: ``auto`` or a name in ``KERNELS``: what computes it in either mode;
            may be set at any time.

    Shapes: (b, n, dim) -> (b, n, dim), or (b, m, dim) if only the first m tokens are asked for.

    Raises:
        ValueError: heads that do not divide the width, a rate outside [0, 1), unknown attention, or
            dropout with one that has none.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        norm_eps: float = 1e-6,
        attention: str = "auto",
    ) -> None:
        super().__init__()
        must_divide("num_heads", num_heads, "width", dim)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(self.head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(rate("attention_dropout", attention_dropout))
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(rate("dropout", dropout))
        self.normalises = qk_norm
        self.set_kernels(attention, attention)

    def set_kernels(self, training: str, evaluation: str) -> None:
        """What computes attention in training and in evaluation, from now on.

        Raises:
            ValueError: neither ``auto`` nor a name in ``KERNELS``, or one that cannot do this layer's dropout.
        """
        for kernel in (training, evaluation):
            choice("attention", kernel, ATTENTIONS)
        if training in WITHOUT_DROPOUT and self.attn_drop.p:
            raise ValueError(
                f"--model.attention {training}: has no dropout, and --model.attention_dropout is "
                f"{self.attn_drop.p}; use auto or explicit"
            )
        self.kernel_training, self.kernel_evaluation = training, evaluation

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """``first``: give the first m tokens alone; they attend to all."""
        asked, dropout = self.kernel_evaluation, 0.0
        if self.training:
            asked, dropout = self.kernel_training, self.attn_drop.p
        kernel = resolve_attention(asked, x.shape[1], x.device.type)
        if first is not None and may_be_split(self.qkv):
            out = few_queries(*self._few_queries(x, first), dropout, kernel)
        elif self._kernel_adds_bias(kernel, x.shape[1]):
            out = on_chip(self._packed(linear(x, self.qkv.weight, None)), dropout, self.qkv.bias)
            out = out if first is None else out[:, :first]
        else:
            out = KERNELS[kernel](self._qkv(x), dropout)
            out = out if first is None else out[:, :first]
        return self.proj_drop(self.proj(out))

    def weights(self, x: Tensor) -> Tensor:
        """How much each token (row) attends to each (column): ViT paper, Eq. 6; rows sum to 1.

        Written out whatever kernel the layer runs, since the fused ones never have it, and without dropout.

        Args:
            x: as in ``forward``, (b, n, dim).

        Returns:
            float32 (b, num_heads, n, n).
        """
        q, k, _ = self._qkv(x).unbind(2)
        with torch.autocast(x.device.type, enabled=False):
            scores = torch.einsum("bnhd,bmhd->bhnm", q.float() * self.scale, k.float())
        return scores.softmax(dim=-1)

    def _qkv(self, x: Tensor) -> Tensor:
        """Queries, keys and values (b, n, 3, h, d)."""
        qkv = self._packed(self.qkv(x))
        if self.normalises:
            q, k, v = qkv.unbind(2)
            qkv = torch.stack([self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype), v], dim=2)
        return qkv

    def _kernel_adds_bias(self, kernel: str, tokens: int) -> bool:
        """Because it has the bias's gradient at hand; beside a tile it has no registers left for that."""
        plain = not self.normalises and may_be_split(self.qkv)
        return kernel == "triton" and plain and not beside_a_tile(tokens)

    def _packed(self, qkv: Tensor) -> Tensor:
        return rearrange(qkv, "b n (three h d) -> b n three h d", three=3, h=self.num_heads)

    def _few_queries(self, x: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (b, m, h, d) of the first m tokens, keys and values (b, n, h, d) of all."""
        dim = x.shape[-1]
        weights = self.qkv.weight.split([dim, 2 * dim])
        biases = (None, None) if self.qkv.bias is None else self.qkv.bias.split([dim, 2 * dim])
        q = rearrange(linear(x[:, :first], weights[0], biases[0]), "b m (h d) -> b m h d", h=self.num_heads)
        kv = linear(x, weights[1], biases[1])
        k, v = rearrange(kv, "b n (two h d) -> two b n h d", two=2, h=self.num_heads)
        if self.normalises:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        return q, k, v

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, attention={self.kernel_training!r}, {self.kernel_evaluation!r}"
