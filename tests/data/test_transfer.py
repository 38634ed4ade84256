"""Tensors on their way to a device."""

import pytest
import torch

from vit_gelu.data.transfer import send


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_what_is_sent_may_be_overwritten_at_once(monkeypatch, kind):
    """On these devices a copy that nobody waits for reads memory that has been given away (PyTorch issue 189690)."""
    asked = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **options: asked.append(options) or self)
    send(torch.arange(3), torch.device(kind))
    assert asked == [{}]


def test_on_the_cpu_nothing_is_copied():
    x = torch.arange(3)
    assert send(x, torch.device("cpu")) is x


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_gets_what_there_was_when_it_was_sent():
    sent = []
    for i in range(1000):
        sent.append(send(torch.full((64,), i), torch.device("cuda")))
    assert torch.equal(torch.stack(sent).cpu(), torch.arange(1000)[:, None].expand(1000, 64))
