"""Compiled code is found again on disk, and never for another source than its own."""

import importlib
import os
import sys
import time

import pytest
import torch
from torch._dynamo.utils import counters

from vit_gelu import compile_cache
from vit_gelu.activations import build_activation
from vit_gelu.compile_cache import key_cache
from vit_gelu.training.compilation import compile_network

CPU = torch.device("cpu")
OWN = """
import torch


@torch.library.custom_op("compile_cache_test::square", mutates_args=())
def square(x: torch.Tensor) -> torch.Tensor:
    return x * x


square.register_fake(torch.empty_like)


def keep(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])


square.register_autograd(lambda ctx, grad: SLOPE * ctx.saved_tensors[0] * grad, setup_context=keep)


class Square(torch.nn.Module):
    def forward(self, x):
        return square(x)
"""


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A cache of its own, and torch's settings as they were."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    functions = {"autograd_cache_allow_custom_autograd_functions": False}
    monkeypatch.setattr(compile_cache, "_foreign", set())
    with torch.compiler.config.patch(cache_key_tag=""), torch._functorch.config.patch(functions):
        yield tmp_path
    torch.compiler.reset()


def gradient(net, x, between=lambda: None):
    """Of the compiled network, whatever this process has compiled before; ``between`` it is told so and is compiled."""
    torch.compiler.reset()
    counters.clear()
    compile_network(net, CPU, cuda_graphs=False)
    between()
    x = x.clone().requires_grad_()
    net(x).sum().backward()
    return x.grad


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own check
def test_activations_are_not_differentiated_anew(disk):
    x = torch.randn(64, 32)
    found = []
    for _ in range(2):
        net = torch.nn.Sequential(torch.nn.Linear(32, 32), build_activation("relu"))
        net.load_state_dict(found[0][0] if found else net.state_dict())
        found.append((net.state_dict(), gradient(net, x), counters["aot_autograd"]["autograd_cache_hit"]))
    assert [hits for _, _, hits in found] == [0, 1]
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("whose", ["ours", "a user's"])
def test_an_operator_with_another_backward_pass_is_compiled_anew(disk, monkeypatch, whose):
    """torch alone would find the code of the old one: it knows the operator by its name."""
    file = disk / "compile_cache_test_module.py"
    monkeypatch.syspath_prepend(str(disk))
    x = torch.randn(4, 4)
    for slope in (2.0, 3.0):
        file.write_text(OWN.replace("SLOPE", str(slope)))
        os.utime(file, (slope, time.time() + slope))  # two writes in one second are one file to Python
        sys.modules.pop(file.stem, None)
        importlib.invalidate_caches()
        module = importlib.import_module(file.stem)
        net = torch.nn.Sequential(torch.nn.Identity(), module.Square())
        if whose == "ours":
            monkeypatch.setattr(compile_cache, "_own_digest", file.read_bytes)
            monkeypatch.setattr(compile_cache, "_sources_of", lambda net: set())
        torch.testing.assert_close(gradient(net, x, key_cache), slope * x)
    sys.modules.pop(file.stem)


def test_the_mark_stands_beside_another_one(disk, monkeypatch):
    key_cache()
    (mark,) = {torch.compiler.config.cache_key_tag}
    key_cache()
    assert torch.compiler.config.cache_key_tag == mark
    torch.compiler.config.cache_key_tag = "theirs"
    key_cache()
    key_cache()
    assert torch.compiler.config.cache_key_tag == f"theirs {mark}"


def test_our_sources_are_the_rooms_with_operators():
    names = {str(path.relative_to(compile_cache.PACKAGE)) for path in compile_cache._own_sources()}
    registering = {
        str(path.relative_to(compile_cache.PACKAGE))
        for path in compile_cache.PACKAGE.rglob("*.py")
        if "torch.library." in path.read_text()
    }
    assert registering <= names
    assert any(name.endswith(".cpp") for name in names)
