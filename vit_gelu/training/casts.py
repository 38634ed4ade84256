"""All weights of a compiled network to half precision in one launch, and their gradients back in another.

Under autocast the compiler casts each weight and bias by a kernel of its own, and each weight's gradient too: some
hundred launches of a microsecond's work in a step of a small ViT. They wait for nothing but the weights, or are waited
for by nothing but the optimizer, so they go together.
"""

from collections.abc import Iterator, Sequence
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

aten, prims = torch.ops.aten, torch.ops.prims
HALF = (torch.bfloat16, torch.float16)
# What is computed by a library, from operands and into a result that lie in memory.
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default)
CONVOLUTION, CONVOLUTION_BACKWARD = aten.convolution.default, aten.convolution_backward.default
VIEWS = (
    aten.permute.default,
    aten.t.default,
    aten.view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
)


@torch.library.custom_op("vit_gelu::cast_together", mutates_args=())
def cast_together(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """New tensors of another dtype, strides as they are."""
    out = _empty(tensors, dtype)
    torch._foreach_copy_(out, list(tensors))
    return out


@cast_together.register_fake
def _empty(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [torch.empty_like(t, dtype=dtype) for t in tensors]


class GroupedCasts(CustomGraphPass):
    """The pass over a compiled graph, forward or backward, that puts its casts of weights and gradients together."""

    def __call__(self, graph: fx.Graph) -> None:
        """Change the graph in place."""
        weights: dict[Any, list[fx.Node]] = {}
        gradients: dict[Any, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.target is not prims.convert_element_type.default:
                continue
            source, dtype = node.args
            before = source.meta["val"].dtype
            if before == torch.float32 and dtype in HALF and source.op == "placeholder":
                group, wanted = weights.setdefault(dtype, []), _goes_into_products(node)
            elif before in HALF and dtype == torch.float32:
                only_given_out = all(user.op == "output" for user in node.users)
                group, wanted = (
                    gradients.setdefault(before, []),
                    only_given_out and _comes_from_product(source),
                )
            else:
                continue
            if wanted:
                group.append(node)
        for casts in (*weights.values(), *gradients.values()):
            if len(casts) > 1:
                _together(graph, casts)

    def uuid(self) -> bytes:
        """What compiled code is kept under, beside the graph."""
        return get_hash_for_files((__file__,))


def _goes_into_products(node: fx.Node) -> bool:
    """Whether a library reads it, and nothing else: otherwise the compiler would put the cast into what does."""
    users = list(_behind_views(node))
    return bool(users) and all(
        user.target in PRODUCTS or (user.target is CONVOLUTION and source is not user.args[0])
        for user, source in users
    )


def _behind_views(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    for user in node.users:
        if user.target in VIEWS:
            yield from _behind_views(user)
        elif user.op != "output":  # kept for the backward pass
            yield user, node


def _comes_from_product(node: fx.Node) -> bool:
    if node.target in VIEWS:
        return _comes_from_product(node.args[0])  # type: ignore[arg-type]
    if node.target is getitem:
        return node.args[0].target is CONVOLUTION_BACKWARD  # type: ignore[union-attr]
    return node.target in PRODUCTS


def _together(graph: fx.Graph, casts: list[fx.Node]) -> None:
    """One node for all of them, behind the last one's operand; each user reads its part."""
    sources: list[Any] = [node.args[0] for node in casts]
    order = list(graph.nodes)
    after = max(sources, key=order.index)
    if after.op == "placeholder":
        after = max((node for node in order if node.op == "placeholder"), key=order.index)
    with graph.inserting_after(after):
        together = graph.call_function(torch.ops.vit_gelu.cast_together.default, (sources, casts[0].args[1]))
    together.meta["val"] = [node.meta["val"] for node in casts]
    place = together
    for i, node in enumerate(casts):
        with graph.inserting_after(place):
            place = graph.call_function(getitem, (together, i))
        place.meta.update(node.meta)
        node.replace_all_uses_with(place)
        graph.erase_node(node)
