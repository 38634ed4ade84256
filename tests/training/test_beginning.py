"""How a training begins, whatever device Lightning makes tensors on meanwhile."""

from contextlib import contextmanager

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from tests.training.helpers import assert_same_weights, train, weights
from tests.training.test_masked import pretrain


@pytest.mark.parametrize(
    ("start", "options"),
    [
        (
            train,
            {
                "model__whiten_patches": "true",
                "model__position_embedding": "sincos2d",
                "model__stem": "patch",
            },
        ),
        (train, {"model__pooling": "cls", "model__register_tokens": 2, "model__activation": "prelu"}),
        (pretrain, {}),
    ],
)
def test_the_network_does_not_depend_on_the_device_of_new_tensors(tmp_path, monkeypatch, start, options):
    """On a GPU, Lightning makes new tensors there; on the meta device, whatever relies on that fails."""
    start(tmp_path / "as_it_is", **options)
    before = SingleDeviceStrategy.tensor_init_context

    @contextmanager
    def elsewhere(self, *args, **kwargs):
        with before(self, *args, **kwargs), torch.device("meta"):
            yield

    monkeypatch.setattr(SingleDeviceStrategy, "tensor_init_context", elsewhere)
    start(tmp_path / "elsewhere", **options)
    assert_same_weights(weights(tmp_path / "as_it_is"), weights(tmp_path / "elsewhere"))
