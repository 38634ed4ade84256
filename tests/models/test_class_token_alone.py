"""With pooling cls the last block computes the class token alone: the same model, with less arithmetic."""

import copy

import pytest
import torch
from torch import nn

from tests.models.checkpoints import images, scrambled
from vit_gelu.models import VisionTransformer
from vit_gelu.training.flops import flops_of

TINY = {"image_size": 16, "patch_size": 4, "num_classes": 7, "embed_dim": 24, "depth": 3, "num_heads": 3}


def build(**options):
    return scrambled(VisionTransformer(**{**TINY, **options}, seed=0))


def all_tokens(net, x):
    return net.forward_head(net.forward_features(x))


def gradients(net, call, x):
    logits = call(x)
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    return logits, torch.autograd.grad((logits * weights).sum(), list(net.parameters()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"depth": 1},
        {"register_tokens": 2},
        {"qk_norm": True},
        {"qkv_bias": False},
        {"layer_scale": 0.1, "pre_norm": True},
        {"activation": "swiglu"},
        {"activation": "gelu_learnable", "mlp_memory": "lean"},
        {"fc_norm": True, "no_embed_class": True},
        {"representation_size": 12},
        *({"attention": kernel} for kernel in ("explicit", "matmul", "strided", "sdpa", "flash", "math")),
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_equal_logits_and_gradients(options, training):
    net, x = build(**options).train(training), images([16, 16])
    result, expected = (gradients(net, call, x) for call in (net, lambda x: all_tokens(net, x)))
    torch.testing.assert_close(result, expected, rtol=2e-4, atol=2e-5)


def test_stochastic_depth_drops_the_same_images():
    net, x = build(drop_path=0.5).train(), images([16, 16], n=16)
    outputs = []
    for call in (net, lambda x: all_tokens(net, x)):
        torch.manual_seed(1)
        outputs.append(call(x))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(outputs[0], net(x), atol=1e-2)  # the noise was on


class Adapter(nn.Module):
    """What adds to a layer without being one, as LoRA's do."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias

    def forward(self, x):
        return self.layer(x) + 0.3 * x.repeat(1, 1, 3)


def wrap(net):
    net.blocks[-1].attn.qkv = Adapter(net.blocks[-1].attn.qkv)


def hook(net):
    net.blocks[-1].attn.qkv.register_forward_hook(lambda module, inputs, output: 1.5 * output)


def parametrise(net):
    torch.nn.utils.parametrizations.weight_norm(net.blocks[-1].attn.qkv)


@pytest.mark.parametrize("change", [wrap, hook, parametrise])
def test_what_was_put_around_qkv_is_heeded(change):
    net, x = build(), images([16, 16])
    before = net(x)
    change(net)
    if change is not parametrise:
        assert (net(x) - before).abs().max() > 0.05
    torch.testing.assert_close(net(x), all_tokens(net, x), rtol=1e-4, atol=1e-5)


def test_hooks_see_all_tokens_in_forward_features():
    net, seen = build(), []
    net.blocks[-1].mlp.act.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    net(images([16, 16]))
    net.forward_features(images([16, 16]))
    assert seen == [1, 17]


def test_compiled_it_is_the_same():
    net, x = build(), images([16, 16])
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend="aot_eager")
    result = gradients(compiled, compiled, x)
    torch.testing.assert_close(result, gradients(net, net, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("pooling", "less"), [("cls", True), ("mean", False)])
def test_less_arithmetic(pooling, less):
    net, x = build(pooling=pooling), images([16, 16], n=1)
    short, whole = (
        flops_of(net, call, backward=False) for call in (lambda: net(x), lambda: all_tokens(net, x))
    )
    d, others = 24, 16
    # Of each other token: its query, its row of attention, and everything after.
    assert whole - short == (others * 2 * (d * d + 2 * 17 * d + d * d + 8 * d * d) if less else 0)
