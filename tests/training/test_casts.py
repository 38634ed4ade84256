"""Casts of weights and gradients in one launch each: same numbers, and only those that would be a launch of their own.

The pass is for GPUs; it works on graphs alone, so that it is checked on a CPU's.
"""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._inductor.decomposition import select_decomp_table

from vit_gelu.training.casts import GroupedCasts, cast_together
from vit_gelu.training.compilation import compile_options

CAST = torch.ops.prims.convert_element_type.default


class Watched(GroupedCasts):
    """Notes for each graph how many casts there were, how many are left, and how many went together."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, list[int]]] = []

    def __call__(self, graph: torch.fx.Graph) -> None:
        before = sum(node.target is CAST for node in graph.nodes)
        super().__call__(graph)
        graph.lint()
        after = sum(node.target is CAST for node in graph.nodes)
        groups = [len(n.args[0]) for n in graph.nodes if "cast_together" in str(n.target)]
        self.seen.append((before, after, groups))

    def uuid(self) -> None:
        """Not to be cached: a graph from the cache passes here no more."""


def gradients(net: nn.Module, call: Callable[..., torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = call(x)
    out.float().square().sum().backward()
    return [out.detach(), *(p.grad for p in net.parameters())]


def compiled(net: nn.Module, grouping: GroupedCasts | None) -> Callable[..., torch.Tensor]:
    torch._dynamo.reset()
    options = compile_options("cpu") | ({"post_grad_custom_post_pass": grouping} if grouping else {})
    return torch.compile(net, options=options)


def traced(net: nn.Module, grouping: GroupedCasts | None) -> Callable[..., torch.Tensor]:
    """The same graphs, run operator by operator: a network of many kernels would take a minute to compile."""
    torch._dynamo.reset()

    def run(module: torch.fx.GraphModule, inputs: Any) -> Any:
        if grouping is not None:
            grouping(module.graph)
            module.recompile()
        return make_boxed_func(module.forward)

    backend = aot_autograd(
        fw_compiler=run,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    return torch.compile(net, backend=backend)


def both(net: nn.Module, x: torch.Tensor, make: Any = compiled) -> list[tuple[int, int, list[int]]]:
    """Compare with the same network compiled without the pass, to the bit; returns what the pass saw."""
    watched = Watched()
    found = gradients(net, make(net, watched), x)
    expected = gradients(net, make(net, None), x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    return watched.seen


def test_a_vision_transformer():
    torch.manual_seed(0)
    net = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, num_classes=3, embed_dim=32, depth=1, num_heads=2
    )
    forward, backward = both(net, torch.randn(2, 3, 16, 16), traced)
    # Four linear layers in the block and the head, each with its bias, and the patch embedding's kernel and bias.
    assert forward[2] == [2 * (4 + 1 + 1)]
    assert forward[0] - forward[1] == forward[2][0]
    assert sum(backward[2]) == backward[0] - backward[1]
    # The gradients of the same, and perhaps of biases, as the library gives them.
    assert 4 + 1 <= backward[2][0] <= 4 + 1 + 2


class Tied(nn.Module):
    """Two weights for products, and one that multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.factor = (nn.Parameter(torch.randn(8, 8)) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(x.sin(), self.a), self.b) * self.factor.to(torch.bfloat16)


def test_what_the_compiler_computes_itself_keeps_its_cast():
    torch.manual_seed(0)
    forward, _ = both(Tied(), torch.randn(8, 8))
    assert forward[2] == [2]


class Alone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def test_images_are_no_weights_and_one_cast_is_no_group():
    forward, backward = both(Alone(), torch.randn(2, 3, 8, 8))
    assert forward[2] == backward[2] == []


def test_without_autocast_nothing_changes():
    net, watched = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), Watched()
    compiled(net, watched)(torch.randn(2, 4)).sum().backward()
    assert watched.seen == [(0, 0, [])] * 2


def test_compiled_code_is_found_again():
    """In the cache on the disk, where it lies beside the same network's without the pass."""
    net, x = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6)), torch.randn(2, 4)
    with torch._inductor.config.patch(fx_graph_cache=True):
        gradients(net, compiled(net, GroupedCasts()), x)
        counters.clear()
        gradients(net, compiled(net, GroupedCasts()), x)
        hits: dict[str, Any] = {**counters["inductor"], **counters["aot_autograd"]}
    assert hits.get("fxgraph_cache_hit", 0) + hits.get("autograd_cache_hit", 0) >= 1
    assert hits.get("fxgraph_cache_miss", 0) + hits.get("autograd_cache_miss", 0) == 0
    assert GroupedCasts().uuid()


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels_last"])
def test_values_and_strides(layout):
    tensors = [torch.randn(2, 3, 4, 5), torch.randn(6, 3, 2, 2)]
    if layout == "transposed":
        tensors = [t.flatten(1).t() for t in tensors]
    elif layout == "channels_last":
        tensors = [t.to(memory_format=torch.channels_last) for t in tensors]
    for t, out in zip(tensors, cast_together(tensors, torch.bfloat16), strict=True):
        assert torch.equal(out, t.bfloat16())
        assert out.stride() == t.stride()
    torch.library.opcheck(cast_together, (tensors, torch.bfloat16), test_utils="test_schema")
    torch.library.opcheck(cast_together, (tensors, torch.bfloat16), test_utils="test_faketensor")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu():
    from vit_gelu.models import VisionTransformer

    torch.manual_seed(0)
    net = VisionTransformer(
        16, 4, num_classes=3, embed_dim=32, depth=2, num_heads=2, stem="conv", seed=0
    ).cuda()
    x = torch.randn(4, 3, 16, 16, device="cuda")
    found = []
    for options in (compile_options("cuda"), None):
        torch._dynamo.reset()
        call = torch.compile(net, options=options)
        net.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            out = call(x)
        out.float().square().sum().backward()
        found.append([out.detach(), *(p.grad for p in net.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2 * float(b.abs().max()))
