"""Muon against the singular value decomposition, torch's own Muon and AdamW."""

import pytest
import torch
from torch import nn

from vit_gelu.training.muon import QUINTIC, Muon, orthogonalise, update_scale
from vit_gelu.training.optim import build_optimizer

JORDAN = ((3.4445, -4.7750, 2.0315),) * 5  # what torch.optim.Muon uses


def polynomial(s, coefficients):
    """What the iteration makes of singular values, one by one."""
    s = s / s.norm()
    for a, b, c in coefficients:
        s = a * s + b * s**3 + c * s**5
    return s


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (9, 5), (3, 4, 7)])
@pytest.mark.parametrize("coefficients", [QUINTIC, JORDAN])
def test_singular_values_go_through_the_polynomial(shape, coefficients):
    matrices = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    done = orthogonalise(matrices, coefficients)
    for matrix, result in zip(matrices.reshape(-1, *shape[-2:]), done.reshape(-1, *shape[-2:]), strict=True):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        expected = u @ torch.diag(polynomial(s, coefficients)) @ vh
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


def test_updates_are_nearly_orthogonal():
    g = torch.randn(4, 64, 192, generator=torch.Generator().manual_seed(0))
    s = torch.linalg.svdvals(orthogonalise(g))
    assert s.min() > 0.7
    assert s.max() < 1.2


def test_a_zero_gradient_moves_nothing():
    assert torch.equal(orthogonalise(torch.zeros(3, 4)), torch.zeros(3, 4))


def matrices(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(8, 16), (16, 8), (8, 16), (8, 8), (24, 8)]
    return [nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("rule", ["match_rms_adamw", "original"])
def test_steps_equal_torchs_muon(nesterov, rule):
    ours, theirs = matrices(), matrices()
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov, "adjust_lr_fn": rule}
    a = Muon([{"params": ours}], ns_coefficients=JORDAN, **options)
    b = torch.optim.Muon(theirs, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        a.step(), b.step()
    for p, q, start in zip(ours, theirs, matrices(), strict=True):
        moved = (q - start).norm()
        # torch iterates in bfloat16: its three digits, no more.
        assert (p - q).norm() < 0.02 * moved


def test_batching_changes_nothing():
    together, alone = matrices(), matrices()
    optimizers = [Muon([{"params": together}], lr=0.1), *(Muon([{"params": [p]}], lr=0.1) for p in alone)]
    for p, q in zip(together, alone, strict=True):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
        q.grad = p.grad.clone()
    for optimizer in optimizers:
        optimizer.step()
    for p, q in zip(together, alone, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_kernels_are_matrices_of_their_filters():
    kernel, matrix = (nn.Parameter(torch.ones(shape)) for shape in ((4, 3, 2, 2), (4, 12)))
    kernel.grad = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    matrix.grad = kernel.grad.reshape(4, 12).clone()
    for p in (kernel, matrix):
        Muon([{"params": [p]}], lr=0.1).step()
    torch.testing.assert_close(kernel.reshape(4, 12), matrix)


def test_the_rest_is_adamw():
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    group = {"params": [ours], "use_fallback": True}
    a = Muon([group], lr=0.1, weight_decay=0.3, betas=(0.8, 0.9), fallback_lr_scale=0.5)
    b = torch.optim.AdamW([theirs], lr=0.05, weight_decay=0.3, betas=(0.8, 0.9))
    for i in range(5):
        ours.grad, theirs.grad = (torch.linspace(1, 2, 7) * (-1) ** i for _ in range(2))
        a.step(), b.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_state_survives_a_checkpoint():
    def step(optimizer, net, i):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(i))
        net(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    def make():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
        return net, build_optimizer(net, "muon", lr=0.1, weight_decay=0.1)

    straight, a = make()
    for i in range(4):
        step(a, straight, i)
    stopped, b = make()
    for i in range(2):
        step(b, stopped, i)
    resumed, c = make()
    resumed.load_state_dict(stopped.state_dict())
    c.load_state_dict(b.state_dict())
    for i in range(2, 4):
        step(c, resumed, i)
    for p, q in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, "momentum 1.0: must lie in"),
        ({"betas": (0.9, 2.0)}, "betas 2.0"),
        ({"adjust_lr_fn": "kimi"}, "adjust_lr_fn 'kimi': must be match_rms_adamw or original"),
        ({"ns_coefficients": [[1, 2]]}, "ns_coefficients"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match="optimizer_kwargs") as error:
        Muon(matrices(), **options)
    assert message in str(error.value)


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="use_fallback"):
        Muon([nn.Parameter(torch.zeros(3))])


def test_scale_of_the_paper():
    assert update_scale(torch.Size((100, 400)), "match_rms_adamw") == pytest.approx(4.0)
    assert update_scale(torch.Size((400, 100)), "original") == 2.0
