"""Randomness: purity, independence of purposes, uniformity."""

import pytest
import torch
from scipy import stats

from vit_gelu import randomness


def splitmix64(x: int) -> int:
    """The finaliser in plain Python integers, from the paper."""
    mask = (1 << 64) - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_uniform_equals_integer_arithmetic():
    gamma, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    draw_key = randomness.key(5, "augment", 2)
    got = randomness.uniform(draw_key, torch.tensor([0, 1, 49_999]), 4)
    for row, sample in enumerate((0, 1, 49_999)):
        stream = splitmix64((sample * gamma + draw_key) & mask)
        for j in range(4):
            expected = (splitmix64((stream + (j + 1) * gamma) & mask) >> 40) / 2**24
            assert got[row, j].item() == expected


def test_uniform_is_uniform_and_uncorrelated():
    u = randomness.uniform(randomness.key(0, "augment", 0), torch.arange(50_000), 4).double()
    assert u.min() >= 0
    assert u.max() < 1
    for j in range(4):
        assert stats.kstest(u[:, j].numpy(), "uniform").pvalue > 1e-4
    correlation = torch.corrcoef(torch.cat([u.T, u.roll(1, 0).T]))
    assert (correlation - torch.eye(8)).abs().max() < 0.02


def test_keys_differ_in_every_argument():
    keys = {
        randomness.key(seed, purpose, *counters)
        for seed in (0, 1, -1)
        for purpose in randomness.PURPOSES
        for counters in ((), (0,), (1,), (0, 1), (1, 0), ("0",), ("head.weight",))
    }
    assert len(keys) == 3 * 5 * 7
    assert all(0 <= k < 2**63 for k in keys)


def test_key_is_stable_across_versions():
    # A published order must stay reproducible: these numbers may never change.
    assert randomness.key(0, "order", 0) == 2094333682667709378
    assert torch.randperm(5, generator=randomness.generator(0, "order", 0)).tolist() == [3, 0, 4, 2, 1]


def test_noise_depends_on_seed_step_and_rank_alone():
    def draw(*args):
        randomness.seed_noise(*args)
        return torch.rand(3)

    first = draw(0, 10, 0)
    torch.rand(17)
    assert torch.equal(first, draw(0, 10, 0))
    for other in ((1, 10, 0), (0, 11, 0), (0, 10, 1)):
        assert not torch.equal(first, draw(*other))


def test_noise_is_that_of_manual_seed():
    # Seeded without torch.manual_seed, for speed: a run of an earlier version must still resume.
    randomness.seed_noise(3, 7, 1)
    drawn = torch.rand(5), torch.bernoulli(torch.full((9,), 0.5))
    torch.manual_seed(randomness.key(3, "noise", 7, 1))
    assert torch.equal(drawn[0], torch.rand(5))
    assert torch.equal(drawn[1], torch.bernoulli(torch.full((9,), 0.5)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_noise_on_the_gpu_is_that_of_manual_seed():
    torch.zeros(1, device="cuda")
    randomness.seed_noise(3, 7, 1)
    drawn = torch.rand(5, device="cuda")
    torch.manual_seed(randomness.key(3, "noise", 7, 1))
    assert torch.equal(drawn, torch.rand(5, device="cuda"))


def test_unknown_purpose_is_refused():
    with pytest.raises(ValueError, match="purpose 'ordre' is not one of init, split"):
        randomness.key(0, "ordre")
