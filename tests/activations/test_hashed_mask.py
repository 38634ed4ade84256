"""The mask of compiled code on a CPU: random enough, of the right probability, and its own gradient."""

import numpy as np
import pytest
import torch
from scipy import stats

from vit_gelu.activations import build_activation
from vit_gelu.activations.bernoulli import hashed_bits

N = 1 << 18


def uniform(*seeds, shape=(N,)):
    bits = hashed_bits(torch.empty(shape), torch.tensor(seeds, dtype=torch.int32))
    return (bits.double() + 2.0**31) / 2.0**32


SEEDS = [(0, 0), (1, 0), (0, 1), (123456789, -987654321), (-(2**31), 2**31 - 1)]


@pytest.mark.parametrize("seeds", SEEDS)
def test_words_are_uniform_and_each_bit_is_fair(seeds):
    u = uniform(*seeds).numpy()
    assert stats.kstest(u, "uniform").pvalue > 1e-4
    words = (u * 2**32).astype(np.uint64)
    for bit in range(32):
        ones = int(((words >> np.uint64(bit)) & np.uint64(1)).sum())
        assert stats.binomtest(ones, N).pvalue > 1e-5, f"bit {bit}"


@pytest.mark.parametrize("seeds", SEEDS)
def test_neighbours_are_independent(seeds):
    u = uniform(*seeds)
    for lag in (1, 2, 3, 16, 64, 192, 768, 65 * 768):
        assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 5 / (N - lag) ** 0.5, lag
    pairs = np.histogram2d(u[::2], u[1::2], bins=32)[0].ravel()
    assert stats.chisquare(pairs).pvalue > 1e-4


@pytest.mark.parametrize("other", [(1, 0), (0, 1), (768, 0), (0, 2**16), (-1, -1)])
def test_seeds_that_differ_by_little_give_independent_words(other):
    a, b = uniform(7, 11), uniform(7 + other[0], 11 + other[1])
    for lag in (0, 1, 768):
        assert abs(np.corrcoef(a[: N - lag], b[lag:])[0, 1]) < 5 / (N - lag) ** 0.5
        assert float((a[: N - lag] == b[lag:]).double().mean()) < 1e-4 or other == (768, 0)


def compiled():
    torch._dynamo.reset()
    return torch.compile(build_activation("gelu_stochastic").train(), fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kept_with_probability_phi(dtype):
    act = compiled()
    torch.manual_seed(0)
    for point in (-3.0, -1.5, -0.5, 0.25, 1.0, 2.0):
        x = torch.full((N,), point, dtype=dtype)
        kept = int((act(x) != 0).sum())
        assert stats.binomtest(kept, N, stats.norm.cdf(point)).pvalue > 1e-4, point


def test_the_gradient_is_the_mask_and_draws_differ():
    act = compiled()
    x = torch.randn(64, 96, requires_grad=True)
    torch.manual_seed(3)
    first, second = act(x), act(x)
    assert not torch.equal(first, second)
    grad = torch.randn(64, 96)
    (got,) = torch.autograd.grad(first, x, grad)
    torch.testing.assert_close(got, grad * (first != 0))
    torch.manual_seed(3)
    assert torch.equal(act(x), first)


def test_nothing_is_kept_but_the_result():
    kept = []
    x = torch.randn(64, 96, requires_grad=True)
    act = compiled()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = act(x)
    assert sum(t.numel() for t in kept if t.data_ptr() != y.data_ptr()) <= 2  # the seeds
