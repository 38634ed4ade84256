"""Tokens between the blocks in full or half precision: which dtype they have, what that rounds, what it saves."""

import pytest
import torch
from torch import nn

from tests.training.helpers import train
from vit_gelu.bench.memory import kept_for_backward
from vit_gelu.models import VisionTransformer

SIZE = {"image_size": 16, "patch_size": 4, "num_classes": 5, "embed_dim": 32, "depth": 3, "num_heads": 2}
STREAM = (torch.float32, torch.bfloat16)


def vit(precision: str, **options) -> VisionTransformer:
    net = VisionTransformer(**SIZE, residual_precision=precision, seed=0, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


def stream(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What goes into each block, and what comes out of the last."""
    seen: list[torch.Tensor] = []
    hooks = [b.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for b in net.blocks]
    hooks.append(net.blocks[-1].register_forward_hook(lambda _, inputs, out: seen.append(out)))
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layer_scale": 0.5},
        {"pooling": "mean", "stem": "conv"},
        {"pooling": "mean", "class_token": False, "position_embedding": "none"},
    ],
    ids=str,
)
@pytest.mark.parametrize(("precision", "dtype"), zip(("full", "half"), STREAM, strict=True))
def test_dtype_of_the_stream(precision, dtype, options):
    net, x = vit(precision, **options), torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert [t.dtype for t in stream(net, x)] == [dtype] * 4
    assert [t.dtype for t in stream(net, x)] == [torch.float32] * 4


def test_without_autocast_there_is_no_difference():
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(vit("half")(x), vit("full")(x))


def test_each_sum_is_rounded_once():
    """The exact network's stream, off by the rounding of its sums: 2⁻⁹ of their size per block and sum."""
    x = torch.randn(8, 3, 16, 16)
    exact = stream(vit("full"), x)
    with torch.autocast("cpu", torch.bfloat16):
        errors = [
            [float((t.double() - e).norm() / e.norm()) for t, e in zip(stream(vit(p), x), exact, strict=True)]
            for p in ("full", "half")
        ]
    for i, (full, half) in enumerate(zip(*errors, strict=True)):
        assert half < full + (1 + 2 * i) * 2**-9
    assert errors[1][0] > 2**-11  # the embedding is rounded already


def test_less_is_kept_for_the_backward_pass():
    x, tokens = torch.randn(4, 3, 16, 16), 4 * 17 * 32
    kept = {}
    with torch.autocast("cpu", torch.bfloat16):
        for precision in ("full", "half"):
            net = vit(precision)
            kept[precision] = kept_for_backward(lambda net=net: net(x).sum(), exclude=[*net.parameters(), x])
    # Two norms in each block keep their input, at two bytes a number less; in the last block the second one keeps the
    # class token's.
    assert kept["full"] - kept["half"] >= 2 * tokens * (2 * 3 - 1)


def test_it_is_refused_where_it_means_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"--model.residual_precision half: .*--trainer.precision 32-true"):
        train(tmp_path / "run", model__residual_precision="half")
    with pytest.raises(ValueError, match=r"unknown residual precision 'haf'\. Did you mean 'half'"):
        VisionTransformer(**SIZE, residual_precision="haf")


def test_a_run(tmp_path):
    options = {"trainer__precision": "bf16-mixed", "trainer__max_epochs": 1}
    records = {p: train(tmp_path / p, model__residual_precision=p, **options) for p in ("full", "half")}
    losses = {p: record["val"]["loss"] for p, record in records.items()}
    assert losses["full"] != losses["half"]
    assert losses["half"] == pytest.approx(losses["full"], rel=0.05)
    assert records["full"]["order_hash"] == records["half"]["order_hash"]
