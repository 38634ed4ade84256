"""Who else used the device."""

import torch

from vit_gelu.training.exclusivity import Exclusivity


def test_a_shared_device_is_admitted(monkeypatch):
    assert Exclusivity(torch.device("cpu"), shared=True).check() is False
    alone = Exclusivity(torch.device("cpu"))
    monkeypatch.setattr(Exclusivity, "_busy", staticmethod(lambda: alone.busy + 1000.0))
    assert alone.check() is False
    monkeypatch.setattr(Exclusivity, "_busy", staticmethod(lambda: None))
    assert alone.check() is None
