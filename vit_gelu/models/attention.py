"""Multi-head self-attention (ViT paper, appendix A), written out or fused."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vit_gelu.models.options import ATTENTIONS, choice, must_divide, rate

EXPLICIT_UP_TO = 256  # tokens; on a CPU the fused kernel's backward pass only pays off for longer sequences


def resolve_attention(attention: str, tokens: int, device_type: str) -> str:
    """Which implementation runs: ``"explicit"`` or ``"sdpa"``.

    ``auto`` is explicit on a CPU up to 256 tokens and the fused kernel elsewhere: on two CPU cores a CIFAR
    ViT (65 tokens) trains about 1.6 times faster with its attention written out.

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
        attention: ``auto`` (see ``resolve_attention``), ``explicit`` or ``sdpa``; may be set at any time.

    Shapes: (b, n, dim) -> (b, n, dim).

    Raises:
        ValueError: heads that do not divide the width, a rate outside [0, 1), unknown attention.
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
        self.attention = choice("attention", attention, ATTENTIONS)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(self.head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(rate("attention_dropout", attention_dropout))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(rate("dropout", dropout))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if resolve_attention(self.attention, x.shape[1], x.device.type) == "sdpa":
            dropout = self.attn_drop.p if self.training else 0.0
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
            return self.proj_drop(self.proj(rearrange(out, "b h n d -> b n (h d)")))
        # One batch dimension: a batch of plain products is 15 % faster than matmul on four dimensions.
        q, k, v = (rearrange(part, "b h n d -> (b h) n d") for part in (q, k, v))
        scores = torch.bmm(q * self.scale, k.mT)  # (b·h, n, n)
        out = torch.bmm(self.attn_drop(scores.softmax(dim=-1)), v)
        return self.proj_drop(self.proj(rearrange(out, "(b h) n d -> b n (h d)", h=self.num_heads)))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, attention={self.attention!r}"
