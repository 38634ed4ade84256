"""x·F((x − μ)/σ) and its gradients as one Triton kernel each: one pass over memory on a GPU.

Values are those of the plain formulas in ``distributions`` to float rounding. The sums for μ and σ go through
partial sums in a fixed order, without atomics, so runs repeat. ``VIT_GELU_NO_TRITON=1`` turns this off.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from vit_gelu.activations import distributions, half_precision

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BLOCK = 1024  # elements at a time where one μ and one σ serve all
BLOCKS = 4  # one after the other, in one program: all their loads may be under way at once
TILE = 4096  # elements at a time where μ and σ differ by channel
TILES = 8  # one below the other, in one program: so many times fewer partial sums


# Kernels may read constants of this kind alone.
P = tl.constexpr(half_precision.P)
TANH_SCALE, CUBE = tl.constexpr(distributions.TANH_SCALE), tl.constexpr(distributions.CUBE)
C0, C1, C2, C3, C4, C5 = (tl.constexpr(c) for c in half_precision.C)


@triton.jit
def _cdf_and_pdf(z, NAME: tl.constexpr, HALF: tl.constexpr):
    if NAME == "normal" and HALF:  # as half_precision has it: a third of the instructions
        bell = tl.exp(-0.5 * z * z)
        t = 1.0 / (1.0 + P * tl.abs(z))
        tail = bell * t * (C0 + t * (C1 + t * (C2 + t * (C3 + t * (C4 + t * C5)))))
        cdf = tl.where(z > 0.0, 1.0 - tail, tail)
        pdf = 0.3989422804014327 * bell
    elif NAME == "normal":
        cdf = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))
        pdf = 0.3989422804014327 * tl.exp(-0.5 * z * z)
    elif NAME == "logistic":
        cdf = 1.0 / (1.0 + tl.exp(-z))
        pdf = cdf / (1.0 + tl.exp(z))
    elif NAME == "laplace":
        pdf = 0.5 * tl.exp(-tl.abs(z))
        cdf = tl.where(z <= 0.0, pdf, 1.0 - pdf)
    elif NAME == "uniform":  # comparisons, because minimum and maximum may drop NaN
        cdf = tl.where(z <= -1.0, 0.0, tl.where(z >= 1.0, 1.0, 0.5 * z + 0.5))
        pdf = tl.where((z > -1.0) & (z < 1.0), 0.5, 0.0)
    elif NAME == "normal_tanh":
        z = tl.where(z > 25.0, 25.0, tl.where(z < -25.0, -25.0, z))
        u2 = z * (TANH_SCALE + TANH_SCALE * CUBE * (z * z))
        cdf = 1.0 / (1.0 + tl.exp(-u2))
        pdf = cdf / (1.0 + tl.exp(u2)) * (TANH_SCALE + 3.0 * TANH_SCALE * CUBE * (z * z))
    else:
        tl.static_assert(NAME == "mish", "no kernel for this distribution")
        w = tl.exp(tl.where(z > 40.0, 40.0, z))
        p = w * (w + 2.0)
        cdf = p / (p + 2.0)
        half = 2.0 / (p + 2.0)
        pdf = w * (1.0 + w) * half * half
    return cdf, pdf


@triton.jit
def _value(x, z, NAME: tl.constexpr, HALF: tl.constexpr):
    cdf, _ = _cdf_and_pdf(z, NAME, HALF)
    return x * cdf


@triton.jit
def _partials(x, z, scale, NAME: tl.constexpr, HALF: tl.constexpr):
    """∂y/∂x and −∂y/∂μ."""
    cdf, pdf = _cdf_and_pdf(z, NAME, HALF)
    steep = x * pdf * scale
    return cdf + steep, steep


@triton.jit
def _uniform(
    x_ptr,
    grad_ptr,  # BACKWARD only
    out_ptr,  # y, or the gradient for x
    partial_ptr,  # BACKWARD and LEARNED only: (2, programs)
    mu,  # pointers to one number if LEARNED, else numbers
    sigma,
    count,
    NAME: tl.constexpr,
    LEARNED: tl.constexpr,
    BACKWARD: tl.constexpr,
    SIZE: tl.constexpr,
    REPEAT: tl.constexpr,
):
    """One μ and one σ for all."""
    HALF: tl.constexpr = x_ptr.dtype.element_ty != tl.float32
    if LEARNED:
        mu = tl.load(mu)
        sigma = tl.load(sigma)
    scale = 1.0 / sigma
    by_mu = tl.zeros((SIZE,), tl.float32)
    by_sigma = tl.zeros((SIZE,), tl.float32)
    start = tl.program_id(0).to(tl.int64) * (REPEAT * SIZE)
    for i in tl.static_range(REPEAT):
        at = start + i * SIZE + tl.arange(0, SIZE)
        inside = at < count
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        z = (x - mu) * scale
        if BACKWARD:
            grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
            by_x, steep = _partials(x, z, scale, NAME, HALF)
            out = grad * by_x
            if LEARNED:
                by_mu -= grad * steep
                by_sigma -= grad * steep * z
        else:
            out = _value(x, z, NAME, HALF)
        tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)
    if BACKWARD and LEARNED:
        tl.store(partial_ptr + tl.program_id(0), tl.sum(by_mu, 0))
        tl.store(partial_ptr + tl.num_programs(0) + tl.program_id(0), tl.sum(by_sigma, 0))


@triton.jit
def _by_channel(
    x_ptr,
    grad_ptr,  # BACKWARD only
    out_ptr,  # y, or the gradient for x
    partial_ptr,  # BACKWARD only: (2, row blocks, channels)
    mu_ptr,
    sigma_ptr,
    rows,
    channels,
    NAME: tl.constexpr,
    BACKWARD: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    REPEAT: tl.constexpr,
):
    """μ and σ for each channel."""
    HALF: tl.constexpr = x_ptr.dtype.element_ty != tl.float32
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mu = tl.load(mu_ptr + c, mask=c < channels, other=0.0)[None, :]
    scale = 1.0 / tl.load(sigma_ptr + c, mask=c < channels, other=1.0)[None, :]
    by_mu = tl.zeros((ROWS, CHANNELS), tl.float32)
    by_sigma = tl.zeros((ROWS, CHANNELS), tl.float32)
    for i in range(REPEAT):
        r = (tl.program_id(0).to(tl.int64) * REPEAT + i) * ROWS + tl.arange(0, ROWS)
        at = r[:, None] * channels + c[None, :]
        inside = (r[:, None] < rows) & (c[None, :] < channels)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        z = (x - mu) * scale
        if BACKWARD:
            grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
            by_x, steep = _partials(x, z, scale, NAME, HALF)
            out = grad * by_x
            by_mu -= grad * steep
            by_sigma -= grad * steep * z
        else:
            out = _value(x, z, NAME, HALF)
        tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)
    if BACKWARD:
        at = tl.program_id(0) * channels + c
        tl.store(partial_ptr + at, tl.sum(by_mu, 0), mask=c < channels)
        tl.store(partial_ptr + tl.num_programs(0) * channels + at, tl.sum(by_sigma, 0), mask=c < channels)


def fits(x: Tensor, mu: Tensor | float, sigma: Tensor | float) -> bool:
    """Whether this file may be used: contiguous tensors of ``DTYPES`` on one GPU, float32 parameters."""
    parameters = [t for t in (mu, sigma) if isinstance(t, Tensor)]
    return (
        os.environ.get("VIT_GELU_NO_TRITON", "0") != "1"
        and all(type(t) in (Tensor, torch.nn.Parameter) for t in (x, *parameters))
        and x.is_cuda
        and x.dtype in DTYPES
        and x.numel() > 0
        and all(t.is_contiguous() and t.device == x.device for t in (x, *parameters))
        and all(t.dtype == torch.float32 and t.dim() <= 1 for t in parameters)
    )


def _launch(
    x: Tensor, grad: Tensor | None, mu: Tensor | float, sigma: Tensor | float, name: str
) -> tuple[Tensor, Tensor | None]:
    """y or the gradient for x, and the partial sums (2, ..., parameters) for learned μ and σ."""
    out, backward = torch.empty_like(x), grad is not None
    learned = isinstance(mu, Tensor)
    if isinstance(mu, Tensor) and mu.numel() > 1:
        channels = x.shape[-1]
        rows = x.numel() // channels
        wide = min(256, triton.next_power_of_2(channels))
        tall = TILE // wide
        grid = (triton.cdiv(rows, tall * TILES), triton.cdiv(channels, wide))
        partial = x.new_empty((2, grid[0], channels), dtype=torch.float32) if backward else None
        with torch.cuda.device_of(x):
            _by_channel[grid](
                *(x, grad, out, partial, mu, sigma, rows, channels), *(name, backward, tall, wide, TILES)
            )
    else:
        programs = triton.cdiv(x.numel(), BLOCK * BLOCKS)
        partial = x.new_empty((2, programs, 1), dtype=torch.float32) if learned and backward else None
        with torch.cuda.device_of(x):
            _uniform[(programs,)](
                *(x, grad, out, partial, mu, sigma, x.numel()), *(name, learned, backward, BLOCK, BLOCKS)
            )
    return out, partial


def forward(x: Tensor, mu: Tensor | float, sigma: Tensor | float, name: str) -> Tensor:
    """y = x·F((x − μ)/σ), in the dtype of x."""
    return _launch(x, None, mu, sigma, name)[0]


def backward(
    grad: Tensor, x: Tensor, mu: Tensor | float, sigma: Tensor | float, name: str
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients for x, μ and σ, the latter two None if numbers; ``grad`` as x is."""
    grad_x, partial = _launch(x, grad, mu, sigma, name)
    if partial is None or not isinstance(mu, Tensor):
        return grad_x, None, None
    by_mu, by_sigma = partial.sum(1)
    return grad_x, by_mu.view(mu.shape), by_sigma.view(mu.shape)
