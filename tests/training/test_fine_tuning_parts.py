"""Layer-wise learning-rate decay and frozen parts, against timm's and a plain reading of the rule."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from vit_gelu.models import build_vit
from vit_gelu.training.freeze import freeze
from vit_gelu.training.layer_decay import layer_scales
from vit_gelu.training.optim import build_optimizer

SIZE = {"image_size": 16, "patch_size": 8, "num_classes": 3, "embed_dim": 24, "depth": 3, "num_heads": 2}


def vit(**options):
    return build_vit("vit_tiny", **SIZE, **options)


@pytest.mark.parametrize("decay", [0.5, 0.75, 1.0])
def test_scales_are_timms(decay):
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, num_classes=3, embed_dim=24, depth=3, num_heads=2
    )
    expected = {}
    names = {id(p): name for name, p in theirs.named_parameters()}
    for group in param_groups_layer_decay(theirs, layer_decay=decay):
        expected |= {names[id(p)]: group["lr_scale"] for p in group["params"]}
    # timm counts the last norm to the last block; BEiT and MAE, as we, to the head.
    expected |= {"norm.weight": 1.0, "norm.bias": 1.0}
    assert layer_scales(vit(), decay) == pytest.approx(expected)


def test_registers_and_clip_norm_belong_to_the_embedding():
    scales = layer_scales(vit(register_tokens=2, pre_norm=True), 0.5)
    assert scales["reg_token"] == scales["norm_pre.weight"] == scales["patch_embed.proj.weight"] == 0.5**4
    assert scales["blocks.0.norm1.weight"] == 0.5**3
    assert scales["head.weight"] == scales["norm.weight"] == 1


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.1, float("nan")])
def test_decay_out_of_range(decay):
    with pytest.raises(ValueError, match=r"--model\.layer_decay"):
        layer_scales(vit(), decay)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon", "lion"])
def test_every_parameter_gets_its_rate_once(name):
    net = vit()
    scales = layer_scales(net, 0.5)
    optimizer = build_optimizer(net, name, lr=0.1, weight_decay=0.01, layer_scales=scales)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert (
        len(rate)
        == sum(len(group["params"]) for group in optimizer.param_groups)
        == len(list(net.parameters()))
    )
    for parameter, value in scales.items():
        assert rate[id(net.get_parameter(parameter))] == pytest.approx(0.1 * value)
    # The displayed learning rate is that of the first group: the full one.
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_step_moves_lower_layers_less():
    """With SGD, the movement over the gradient is the rate."""
    net = vit(zero_init_head=False, seed=0)
    optimizer = build_optimizer(net, "sgd", lr=0.1, weight_decay=0.0, layer_scales=layer_scales(net, 0.5))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    torch.nn.functional.cross_entropy(net(torch.randn(4, 3, 16, 16)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    for name, factor in [
        ("patch_embed.proj.weight", 0.5**4),
        ("blocks.1.mlp.fc1.weight", 0.25),
        ("head.weight", 1.0),
    ]:
        parameter = net.get_parameter(name)
        torch.testing.assert_close(
            before[name] - parameter.detach(), 0.1 * factor * parameter.grad, rtol=1e-3, atol=1e-8
        )


def test_backbone():
    net = vit()
    frozen = freeze(net, "backbone")
    assert [n for n, p in net.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    assert len(frozen) == len(list(net.parameters())) - 2


def test_first_blocks():
    net = vit()
    freeze(net, 2)
    trained = {n.split(".")[0] + "." + n.split(".")[1] for n, p in net.named_parameters() if p.requires_grad}
    assert trained == {"blocks.2", "norm.weight", "norm.bias", "head.weight", "head.bias"}


def test_names_are_whole_parts():
    """``blocks.1`` is not ``blocks.10``."""
    net = build_vit("vit_tiny", **{**SIZE, "depth": 11})
    frozen = freeze(net, ["blocks.1", "cls_token"])
    assert all(name == "cls_token" or name.startswith("blocks.1.") for name in frozen)
    assert net.blocks[10].mlp.fc1.weight.requires_grad


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("bakcbone", "Did you mean 'backbone'"),
        (["blocks.7"], "unknown part"),
        (9, "between 1 and 3"),
        (0, "between 1 and 3"),
    ],
)
def test_what_is_not_there(what, message):
    with pytest.raises(ValueError, match=message):
        freeze(vit(), what)


def test_nothing_left():
    net = vit()
    freeze(net, "backbone")
    freeze(net, "head")
    with pytest.raises(ValueError, match=r"--model\.freeze"):
        build_optimizer(net, "adamw", lr=0.1, weight_decay=0.0)


def test_frozen_running_statistics_stay():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(16, 2)
    )
    freeze(net, ["1"])
    before = net[1].running_mean.clone()
    net.train()(torch.randn(8, 3, 2, 2) + 5)
    assert torch.equal(net[1].running_mean, before)


def test_the_head_of_a_timm_model_is_no_hidden_matrix():
    from vit_gelu.models.timm_model import TimmModel
    from vit_gelu.training.optim import parameter_groups

    net = TimmModel("timm/test_resnet", num_classes=3, image_size=32)
    fallback = {
        id(p) for group in parameter_groups(net, 0.1) if group["use_fallback"] for p in group["params"]
    }
    names = {name for name, p in net.named_parameters() if p.ndim >= 2 and id(p) in fallback}
    assert names == {"fc.weight"}
