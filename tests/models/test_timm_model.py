"""Networks of timm as they come, but for their activations: same keys, same logits as timm's own ``act_layer``."""

import copy
import json

import pytest
import timm
import torch
from torch import nn

from vit_gelu.models.build import build_network
from vit_gelu.models.timm_model import TimmModel
from vit_gelu.models.vit import VisionTransformer

VIT = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 4}


def vit(**options):
    return TimmModel("timm/vit_tiny_patch16_224", 5, 16, 3, **{**VIT, "seed": 0, **options})


def images(size=16, channels=3):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(2))


def test_keys_and_logits_are_timms():
    net = vit().eval()
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=16, **VIT).eval()
    assert list(net.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in net.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    theirs.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(net(images()), theirs(images()))
    assert net.native_activation == net.config["native_activation"] == "gelu"
    assert net.config["activation"] is None


@pytest.mark.parametrize(
    ("name", "size", "layer", "options"),
    [
        ("vit_tiny_patch16_224", 32, nn.ReLU, {"embed_dim": 24, "depth": 2, "num_heads": 3}),
        ("deit3_small_patch16_224", 32, nn.ReLU, {"embed_dim": 24, "depth": 2, "num_heads": 3}),
        ("convnext_atto", 32, nn.ReLU, {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}),
        ("resnet18", 32, nn.SiLU, {}),
        ("mixer_s32_224", 32, nn.ReLU, {}),
    ],
)
def test_swapped_equals_timms_own_option(name, size, layer, options):
    activation = {nn.ReLU: "relu", nn.SiLU: "silu"}[layer]
    net = TimmModel(f"timm/{name}", 5, size, 3, activation, seed=0, **options).eval()
    sized = {"img_size": size} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    theirs = timm.create_model(name, num_classes=5, act_layer=layer, **sized, **options).eval()
    theirs.load_state_dict(net.state_dict(), strict=True)
    torch.testing.assert_close(net(images(size)), theirs(images(size)), rtol=1e-6, atol=1e-6)
    assert net.config["activation"] == activation


@pytest.mark.parametrize("activation", [None, "relu", "gelu_learnable"])
def test_config_builds_it_again(activation):
    net = vit(activation=activation, drop_path_rate=0.1)
    assert json.loads(json.dumps(net.config)) == net.config
    again = build_network(net.config)
    assert isinstance(again, TimmModel)
    assert again.config == net.config
    again.load_state_dict(net.state_dict(), strict=True)
    for p, q in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)  # the seed's weights
    assert not torch.equal(vit(seed=1).head.weight, net.head.weight)


def test_mode_type_and_copies_reach_timms_module():
    net = vit(drop_path_rate=0.5)
    assert net.timm_model.training
    net.eval()
    assert not any(m.training for m in [net, net.timm_model, *net.modules()])
    net.double()
    assert net(images().double()).dtype == torch.float64
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.head.bias.add_(1.0)
    assert other.timm_model is not net.timm_model
    torch.testing.assert_close(other(images().double()), net(images().double()) + 1)


def test_gradients_reach_its_parameters():
    net = vit()
    net(images()).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_compiled_in_place_with_clean_keys():
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    net = vit().eval()
    expected, keys = net(images()), list(net.state_dict())
    counter = CompileCounter()
    net.compile(backend=counter)
    torch.testing.assert_close(net(images()), expected, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 1
    assert list(net.state_dict()) == keys
    torch._dynamo.reset()


def test_no_weight_decay_is_handed_on():
    net = vit(activation="gelu_learnable")
    learned = {f"blocks.{i}.mlp.act.{p}" for i in range(2) for p in ("mu", "log_sigma")}
    assert net.no_weight_decay() >= {"pos_embed", "cls_token"} | learned


@pytest.mark.parametrize("activation", ["identity", "tests.models.test_swap.Sine"])
def test_what_only_its_place_tells_to_be_an_activation(activation):
    """In a network without MLPs the new objects are not known as activations by their class."""
    net = TimmModel("timm/resnet18", 5, 32, 3, activation, seed=0)
    assert net.config["activation"] == activation
    assert build_network(net.config).config == net.config


def test_another_timm_that_builds_another_activation_is_refused():
    with pytest.raises(ValueError, match="its own activation was relu, but this timm builds it with gelu"):
        vit(native_activation="relu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "timm/vit_tinny_patch16_224"}, "Did you mean timm/vit_tiny_patch16_224"),
        ({"name": "timm/vit_tiny_patch16_224.augreg"}, "no weights called 'augreg'.*augreg_in21k"),
        ({"name": "timm/resnet18", "nonsense": 3}, "does not take these options"),
        ({"name": "timm/resnet18", "act_layer": "relu"}, "say activation, not act_layer"),
        ({"name": "timm/vit_tiny_patch16_224", "image_size": 30}, "30 × 30 images.*patches of 16 × 16"),
        ({"name": "timm/resnet18", "activation": "glue"}, "Did you mean 'gelu'"),
        ({"name": "timm/resnet18", "activation_kwargs": {"alpha": 1.0}}, "needs --activation"),
        ({"name": "timm/resnet18", "activation": "swiglu"}, "a gated activation takes twice"),
        ({"name": "timm/resnet18", "num_classes": 0}, "num_classes 0"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        TimmModel(**{"num_classes": 5, "image_size": 32, **arguments})
    assert len(str(error.value).splitlines()) <= 3


def test_pretrained_weights_that_are_not_here(monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError,
        match=r"--model.name timm/test_vit.r160_in1k: needs model.safetensors .*\(HF_HUB_OFFLINE is set\)",
    ):
        TimmModel("timm/test_vit.r160_in1k", 5, 160, pretrained=True)


def test_pretrained_weights_load_strictly_and_the_head_is_new(tmp_path):
    theirs = timm.create_model("test_vit", num_classes=7)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 7}
    same = TimmModel("timm/test_vit", 7, 160, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    x = images(160)
    assert torch.equal(same(x), theirs.eval()(x))
    fewer = TimmModel("timm/test_vit", 3, 160, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    assert torch.equal(fewer.timm_model.forward_features(x), theirs.forward_features(x))
    assert fewer(x).shape == (2, 3)


def test_build_network():
    net = VisionTransformer(16, 4, num_classes=5, embed_dim=24, depth=2, num_heads=3, seed=0)
    again = build_network(net.config)
    assert again.config == net.config
    with pytest.raises(ValueError, match=r"'poolin' is unknown \(nearest: pooling\)"):
        build_network({**net.config, "poolin": "cls"})
