"""Initial weights. Every parameter draws from a stream of its own, fixed by the run's seed and its name.

So two models that differ in one part, such as the activation, start with equal weights everywhere else.

``timm``     the distributions of timm's ViT, which are DeiT's (Touvron et al. 2020, arXiv:2012.12877):
             matrices normal(0, 0.02) cut at ±2, biases 0, position embedding as the matrices, class and
             register tokens normal(0, 1e-6), patch projection uniform(±1/√fan_in) as torch's convolutions.
``jax``      the ViT paper's code (google-research/vision_transformer): Xavier-uniform matrices with q, k and
             v apart, MLP biases normal(0, 1e-6), patch projection LeCun normal, class token and head 0.
``mimetic``  ``timm``, but the attention as in ``mimetic_qkv_proj``.

Norms (1 and 0), LayerScale, activations and a ResNet stem keep what they were built with.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vit_gelu.models.attention import Attention
from vit_gelu.randomness import generator

Draw = Callable[[Tensor, torch.Generator], object]


def constant(value: float) -> Draw:
    """Fill with one value."""
    return lambda tensor, _: tensor.fill_(value)


def normal(std: float) -> Draw:
    """normal(0, std)."""
    return lambda tensor, g: tensor.normal_(std=std, generator=g)


def truncated_normal(std: float, cut: float = 2.0) -> Draw:
    """normal(0, std) redrawn outside ±cut (an absolute bound, as in timm)."""
    return lambda tensor, g: nn.init.trunc_normal_(tensor, std=std, a=-cut, b=cut, generator=g)


def lecun_normal(fan_in: int) -> Draw:
    """Variance 1/fan_in, from a normal cut at two standard deviations: flax's default for layers."""
    std = fan_in**-0.5 / 0.87962566103423978  # what the cut takes away from a unit normal's deviation
    return truncated_normal(std, cut=2 * std)


def uniform(bound: float) -> Draw:
    """uniform(−bound, bound)."""
    return lambda tensor, g: tensor.uniform_(-bound, bound, generator=g)


def _fan_in(module: nn.Linear | nn.Conv2d) -> int:
    return module.weight[0].numel()


def _timm(name: str, module: nn.Linear | nn.Conv2d) -> dict[str, Draw]:
    if isinstance(module, nn.Conv2d):
        return dict.fromkeys(("weight", "bias"), uniform(_fan_in(module) ** -0.5))
    return {"weight": truncated_normal(0.02), "bias": constant(0.0)}


def _jax(name: str, module: nn.Linear | nn.Conv2d) -> dict[str, Draw]:
    if name == "head":
        return {"weight": constant(0.0), "bias": constant(0.0)}
    if isinstance(module, nn.Conv2d) or name.startswith("pre_logits"):
        return {"weight": lecun_normal(_fan_in(module)), "bias": constant(0.0)}
    rows, columns = module.weight.shape
    rows = rows // 3 if name.endswith(".qkv") else rows
    bias = normal(1e-6) if ".mlp." in name else constant(0.0)
    return {"weight": uniform(math.sqrt(6 / (rows + columns))), "bias": bias}


_TOKENS: dict[str, dict[str, Draw]] = {
    "timm": {
        "pos_embed": truncated_normal(0.02),
        "cls_token": normal(1e-6),
        "reg_token": normal(1e-6),
        "mask_token": normal(0.02),
    },
    "jax": {
        "pos_embed": normal(0.02),
        "cls_token": constant(0.0),
        "reg_token": normal(1e-6),
        "mask_token": normal(0.02),
    },
}


@torch.no_grad()
def initialise(model: nn.Module, seed: int, scheme: str, *, zero_head: bool = False) -> None:
    """Draw the initial weights of a ViT; parameters on the meta device are left alone.

    Args:
        model: a ``VisionTransformer``; changed in place.
        seed: the run's seed.
        scheme: one of ``timm``, ``jax``, ``mimetic``; see above.
        zero_head: start the head at zero, so that all classes are equally likely at first.
    """
    base = "jax" if scheme == "jax" else "timm"

    def fill(name: str, parameter: nn.Parameter, draw: Draw) -> None:
        if not parameter.is_meta:
            values = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            draw(values, generator(seed, "init", name))
            parameter.copy_(values)

    for name, parameter in model.named_parameters(recurse=False):
        fill(name, parameter, _TOKENS[base][name])
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and ".mlp.act" not in name and "backbone" not in name:
            draws = _jax(name, module) if base == "jax" else _timm(name, module)
            if name == "head" and zero_head:
                draws = {"weight": constant(0.0), "bias": constant(0.0)}
            for kind, parameter in module.named_parameters(recurse=False):
                fill(f"{name}.{kind}", parameter, draws[kind])
    if scheme == "mimetic":
        for name, module in model.named_modules():
            if isinstance(module, Attention) and not module.qkv.weight.is_meta:
                streams = (generator(seed, "init", f"{name}.mimetic.{part}") for part in ("qk", "vo"))
                qkv, proj = mimetic_qkv_proj(module.qkv.in_features, module.num_heads, *streams)
                module.qkv.weight.copy_(qkv)
                module.proj.weight.copy_(proj)


def mimetic_qkv_proj(
    dim: int,
    num_heads: int,
    qk_stream: torch.Generator,
    vo_stream: torch.Generator,
    *,
    qk: tuple[float, float] = (0.7, 0.7),
    vo: tuple[float, float] = (0.4, 0.4),
) -> tuple[Tensor, Tensor]:
    """Attention weights that look trained: Trockman & Kolter 2023 (arXiv:2305.09828), §4.

    For tokens as rows, each head has W_q·W_kᵀ ≈ α·Z + β·I with (α, β) = ``qk``, to its rank, and all heads
    together have W_v·W_proj = α·Z − β·I with (α, β) = ``vo``; Z has entries normal(0, 1/dim). The products
    are split by singular values, evenly. The defaults are the paper's for vision. It takes one
    decomposition of a (dim, dim) matrix per head: under a second for ViT-Ti, twenty seconds for ViT-B.
    Two machines may disagree on the sign of a singular pair, which changes no product and no output.

    Returns:
        float32 weights in ``nn.Linear``'s layout: qkv (3·dim, dim) and proj (dim, dim).
    """
    eye = torch.eye(dim, dtype=torch.float32, device="cpu")

    def near_identity(alpha: float, beta: float, stream: torch.Generator) -> Tensor:
        z = torch.randn(dim, dim, generator=stream, dtype=torch.float32, device="cpu") / math.sqrt(dim)
        return alpha * z + beta * eye

    queries, keys = [], []
    k = dim // num_heads
    for _ in range(num_heads):
        u, s, vt = torch.linalg.svd(near_identity(*qk, qk_stream))
        root = s[:k].sqrt()[:, None]
        queries.append(root * u[:, :k].T)
        keys.append(root * vt[:k])
    u, s, vt = torch.linalg.svd(near_identity(vo[0], -vo[1], vo_stream))
    root = s.sqrt()
    qkv = torch.cat([*queries, *keys, root[:, None] * u.T])
    proj = (root[:, None] * vt).T
    return qkv, proj.contiguous()
