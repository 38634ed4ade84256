"""Swapping activations in networks of every make, against networks that were built with the new one."""

import copy

import pytest
import timm
import torch
import torchvision
from timm.layers import GluMlp, SwiGLU
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from vit_gelu.models import VisionTransformer
from vit_gelu.models.layers import Mlp
from vit_gelu.models.swap import SwapEffect, compare_logits, logits_of, swap_activations

SMALL = {"num_classes": 5, "embed_dim": 24, "depth": 2, "num_heads": 3}


def ours(**options):
    return VisionTransformer(16, 4, **SMALL, seed=0, **options)


def images(size=16, n=4, channels=3):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(2))


def scramble(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return model.eval()


def assert_equals_built(swapped, built, x):
    """The swapped network computes what a network built with the new activation does with its weights."""
    built.load_state_dict(swapped.state_dict(), strict=True)
    with torch.no_grad():
        a, b = swapped.eval()(x), built.eval()(x)
    a, b = getattr(a, "logits", a), getattr(b, "logits", b)
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("to", "kwargs"), [("relu", None), ("elu", {"alpha": 0.5}), ("gelu_learnable", None)]
)
def test_our_own(to, kwargs):
    net = scramble(ours())
    before = copy.deepcopy(net)
    swap = swap_activations(net, to, to_kwargs=kwargs)
    new = to + ("(alpha=0.5)" if kwargs else "")
    assert swap.replaced == tuple((f"blocks.{i}.mlp.act", "gelu", new) for i in range(2))
    assert swap.text == f"gelu -> {new} in 2 places (blocks.0.mlp.act … blocks.1.mlp.act)"
    assert swap.left == swap.functional == ()
    assert (net.config["activation"], net.config["activation_kwargs"]) == (to, kwargs or {})
    assert net.blocks[0].mlp.act is not net.blocks[1].mlp.act
    assert_equals_built(net, VisionTransformer(**net.config), images())
    effect = compare_logits(before, net, images())
    assert (effect.max_abs < 1e-5) == (to == "gelu_learnable")  # which starts as GELU


def test_record_is_plain():
    import json

    net = ours(representation_size=8)
    record = swap_activations(net, "relu").record()
    assert json.loads(json.dumps(record)) == record
    assert record["left"] == ["1 tanh (pre_logits.act, bounded)"]


def test_a_stem_keeps_its_own():
    net = VisionTransformer(32, 32, stem="resnet26", **SMALL, seed=0)
    swap = swap_activations(net, "silu")
    assert {name for name, _, _ in swap.replaced} == {"blocks.0.mlp.act", "blocks.1.mlp.act"}
    assert len(swap.left) == 1
    assert "relu (patch_embed.backbone" in swap.left[0]
    assert net.config["activation"] == "silu"


def test_only_part_of_it_is_said_in_the_config():
    net = ours()
    swap = swap_activations(net, "relu", only="blocks.1.*")
    assert [name for name, _, _ in swap.replaced] == ["blocks.1.mlp.act"]
    assert [isinstance(b.mlp.act, nn.ReLU) for b in net.blocks] == [False, True]
    assert net.config["activation"] == "mixed"
    with pytest.raises(ValueError, match="unknown activation 'mixed'"):
        VisionTransformer(**net.config)
    swap_activations(net, "relu", only="blocks.0.*")
    assert net.config["activation"] == "relu"
    # A layer that the option does not mean: the same activations in the MLPs, and yet no network that it builds.
    other = ours(representation_size=8)
    swap_activations(other, "gelu", only="pre_logits.*")
    assert other.config["activation"] == "mixed"


@pytest.mark.parametrize("to", ["relu", "silu", "prelu"])
def test_timms_vit(to):
    make = {"img_size": 16, "patch_size": 4, **SMALL}
    net = scramble(TimmViT(**make))
    assert len(swap_activations(net, to).replaced) == 2
    layer = {"relu": nn.ReLU, "silu": nn.SiLU, "prelu": nn.PReLU}[to]
    assert_equals_built(net, TimmViT(**make, act_layer=layer), images())


def test_one_object_in_many_places_becomes_many():
    shared = nn.GELU()
    net = TimmViT(img_size=16, patch_size=4, **SMALL, act_layer=lambda: shared)
    assert net.blocks[0].mlp.act is net.blocks[1].mlp.act
    assert len(swap_activations(net, "gelu_learnable").replaced) == 2
    acts = [b.mlp.act for b in net.blocks]
    assert acts[0] is not acts[1]
    assert {id(p) for a in acts for p in a.parameters()} <= {id(p) for p in net.parameters()}
    assert len({id(p) for a in acts for p in a.parameters()}) == 4


def test_torchvisions_vit():
    def build(layer):
        net = torchvision.models.VisionTransformer(
            image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
        )
        for block in net.encoder.layers:
            block.mlp[1] = layer()
        return net

    net = scramble(build(nn.GELU))
    swap = swap_activations(net, "relu")
    assert [name for name, _, _ in swap.replaced] == [
        f"encoder.layers.encoder_layer_{i}.mlp.1" for i in range(2)
    ]
    assert_equals_built(net, build(nn.ReLU), images())


def test_transformers_vit_and_clip():
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}

    def build(act):
        config = transformers.ViTConfig(image_size=16, patch_size=4, **size, hidden_act=act, num_labels=5)
        return transformers.ViTForImageClassification(config)

    net = scramble(build("gelu"))
    swap = swap_activations(net, "relu")
    assert len(swap.replaced) == 2
    assert all(old == "gelu" and new == "relu" for _, old, new in swap.replaced)
    assert_equals_built(net, build("relu"), images())

    clip = transformers.CLIPVisionConfig(image_size=16, patch_size=4, **size, hidden_act="quick_gelu")
    swap = swap_activations(transformers.CLIPVisionModel(clip), "gelu")
    assert [(old, new) for _, old, new in swap.replaced] == [("gelu_sigmoid", "gelu")] * 2


def test_vit_pytorch():
    vit_pytorch = pytest.importorskip("vit_pytorch")
    net = vit_pytorch.ViT(image_size=16, patch_size=4, num_classes=5, dim=16, depth=3, heads=2, mlp_dim=32)
    assert len(swap_activations(net, "relu").replaced) == 3


def test_torchs_encoder_layer_does_not_go_on_with_its_fused_kernel():
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.GELU(), batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    swap_activations(layer, "relu")
    reference = nn.TransformerEncoderLayer(8, 2, 16, activation="relu", batch_first=True).train()
    reference.load_state_dict(layer.state_dict())
    for dropout in (reference.dropout, reference.dropout1, reference.dropout2):
        dropout.p = 0.0
    reference.self_attn.dropout = 0.0
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), reference(x), rtol=1e-5, atol=1e-5)


def test_a_network_of_convolutions_is_swapped_whole():
    net = scramble(timm.create_model("resnet18", num_classes=5))
    swap = swap_activations(net, "silu")
    assert len(swap.replaced) == 17
    assert_equals_built(net, timm.create_model("resnet18", num_classes=5, act_layer=nn.SiLU), images(32))


def test_gates_stay():
    net = timm.create_model("seresnet18", num_classes=5) if timm.is_model("seresnet18") else None
    net = net or timm.create_model("mobilenetv3_small_050", num_classes=5)
    swap = swap_activations(net, "gelu")
    assert swap.replaced
    gates = {n: type(m) for n, m in net.named_modules() if ".se." in n and not list(m.children())}
    assert nn.GELU not in gates.values()
    assert not any(".se." in name for name, _, _ in swap.replaced)
    with pytest.raises(ValueError, match=r"names gates of .* they are never swapped"):
        swap_activations(net, "gelu", only="*.se.*")


@pytest.mark.parametrize(
    ("name", "swapped", "left"),
    [
        (
            "vit_relpos_small_patch16_224",
            {"gelu mlp": 12},
            {"relu gate": 12},
        ),  # an MLP makes the position bias
        ("swinv2_cr_tiny_ns_224", {"gelu mlp": 12}, {"relu gate": 12}),
        ("vit_base_patch16_siglip_224", {"gelu mlp": 13}, {}),  # with the pooling's MLP
        ("eva02_tiny_patch14_224", {"silu mlp": 12}, {}),
        ("vit_small_r26_s32_224", {"gelu mlp": 12}, {"relu hidden": 25}),
        ("legacy_seresnet18", {"relu hidden": 9}, {"relu gate": 8, "torch.nn.Sigmoid gate": 8}),
        ("efficientvit_b0", {"hardswish hidden": 24}, {"relu gate": 4}),  # features of linear attention
        ("fastvit_t8", {"gelu mlp": 10}, {"gelu hidden": 7, "relu gate": 1, "torch.nn.Sigmoid gate": 1}),
        ("poolformerv2_s12", {"StarReLU( (relu): ReLU() ) mlp": 12}, {}),
        (
            "caformer_s18",
            {"StarReLU( (relu): ReLU() ) mlp": 18},
            {"StarReLU( (relu): ReLU() ) hidden": 6, "SquaredReLU( (relu): ReLU() ) hidden": 1},
        ),
        ("vgg11", {"relu hidden": 10}, {}),
    ],
)
def test_which_of_timms(name, swapped, left):
    """Counted by hand in timm's sources."""
    from collections import Counter

    from vit_gelu.activations.recognition import describe_activation
    from vit_gelu.models.activation_places import find_places

    with torch.device("meta"):
        net = timm.create_model(name)
    parts = find_places(net)
    counts = [Counter(f"{describe_activation(p.module)} {p.kind}" for p in part) for part in parts]
    assert counts == [swapped, left]


def test_transformers_of_other_kinds():
    transformers = pytest.importorskip("transformers")
    from vit_gelu.models.activation_places import find_places

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    image = {"image_size": 16, "patch_size": 4}
    for kind, options, count in (
        ("Dinov2", {**size, **image}, 2),
        ("Siglip", {**size, **image}, 3),  # with the pooling's
        ("Beit", {**size, **image}, 2),
        ("Swin", {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, **image}, 2),
        ("ConvNext", {"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2}, 2),
    ):
        config = getattr(transformers, f"{kind}VisionConfig" if kind == "Siglip" else f"{kind}Config")(
            **options
        )
        model = getattr(transformers, f"{kind}VisionModel" if kind == "Siglip" else f"{kind}Model")
        assert len(find_places(model(config))[0]) == count, kind


@pytest.mark.parametrize("mlp", [GluMlp, SwiGLU])
def test_gated_mlps_of_timm_take_gated_activations(mlp):
    class Block(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.mlp = mlp(8, 16, act_layer=act)

        def forward(self, x):
            return self.mlp(x)

    net = scramble(Block(nn.SiLU))
    swap_activations(net, "geglu")
    assert_equals_built(net, Block(nn.GELU), torch.randn(3, 8))
    with pytest.raises(ValueError, match="it sits in a gated MLP"):
        swap_activations(net, "relu")


def test_gated_and_plain_do_not_mix():
    plain, gated = ours(), ours(activation="swiglu")
    before = copy.deepcopy(plain.state_dict())
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.act for swiglu: a gated activation takes twice"):
        swap_activations(plain, "swiglu")
    with pytest.raises(ValueError, match="gated MLP, whose first layer is two matrices"):
        swap_activations(gated, "relu")
    assert all(isinstance(b.mlp.act, nn.GELU) for b in plain.blocks)
    assert plain.config["activation"] == "gelu"
    assert plain.state_dict().keys() == before.keys()
    swap_activations(gated, "reglu")
    assert_equals_built(gated, ours(activation="reglu"), images())


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.fc2(torch.nn.functional.gelu(self.fc1(x)))


def test_functions_cannot_be_found_and_that_is_said():
    with pytest.raises(
        ValueError, match=r"no activation that could be swapped(.|\n)*Functional.forward calls gelu"
    ):
        swap_activations(Functional(), "relu")
    with torch.device("meta"):
        nfnet = timm.create_model("dm_nfnet_f0")
    with pytest.raises(ValueError, match=r"GammaAct\.act_fn is the function gelu"):
        swap_activations(nfnet, "relu")
    both = nn.Sequential(Functional(), nn.ReLU(), nn.Linear(2, 2))
    assert swap_activations(both, "silu").functional == ("Functional.forward calls gelu",)


def test_nothing_to_swap_lists_what_there_is():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())
    with pytest.raises(ValueError, match=r"1 torch\.nn\.Sigmoid \(1, bounded\)"):
        swap_activations(net, "relu")
    assert swap_activations(net, "relu", only="1").replaced == (("1", "torch.nn.Sigmoid", "relu"),)


@pytest.mark.parametrize(
    ("to", "kwargs", "message"),
    [
        ("glue", None, "Did you mean 'gelu'"),
        ("elu", {"alfa": 1.0}, "did you mean 'alpha'"),
        ("elu", {"alpha": "much"}, "alpha"),
    ],
)
def test_what_cannot_be_built_changes_nothing(to, kwargs, message):
    net = ours()
    with pytest.raises(ValueError, match=message):
        swap_activations(net, to, to_kwargs=kwargs)
    assert all(isinstance(b.mlp.act, nn.GELU) for b in net.blocks)


def test_only_that_matches_nothing():
    with pytest.raises(ValueError, match=r"one is called 'blocks.0.mlp.act'"):
        swap_activations(ours(), "relu", only="layers.*")


def test_users_own_class_in_our_mlp():
    net = ours(activation="tests.models.test_swap.Sine")
    swap = swap_activations(net, "relu")
    assert [old for _, old, _ in swap.replaced] == ["Sine()"] * 2


class Sine(nn.Module):
    def forward(self, x):
        return x + x.sin().square()


def test_mode_device_and_type_follow_the_network():
    net = ours().to(torch.float64).train()
    swap_activations(net, "gelu_learnable")
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert all(m.training for m in net.modules())
    net.eval()
    swap_activations(net, "gelu_stochastic")
    assert not any(m.training for m in net.modules())


def test_identity_between_the_matrices_is_an_activation():
    net = ours(activation="identity")
    assert len(swap_activations(net, "relu").replaced) == 2
    assert isinstance(Mlp(4, 8, "identity").act, nn.Identity)


def test_compare_logits_by_hand():
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
    b = torch.tensor([[0.5, 1.0], [0.0, 1.0], [2.0, 1.5]])
    effect = compare_logits(a, b, torch.empty(3, 1, 1, 1))
    assert effect == SwapEffect(
        max_abs=1.0, mean_abs=pytest.approx(2.0 / 6), top1_agreement=pytest.approx(2 / 3), n=3
    )
    assert effect.text == "logits moved by 1 (max), 0.333 (mean); top-1 agreement 66.7 % of 3 images"


def test_compare_logits_leaves_modes_and_refuses_nonsense():
    net = ours(dropout=0.5).train()
    net.blocks[0].eval()
    modes = [m.training for m in net.modules()]
    assert compare_logits(net, net, images(n=5), batch_size=2).max_abs == 0
    assert [m.training for m in net.modules()] == modes
    with pytest.raises(ValueError, match="no images"):
        compare_logits(net, net, images(n=0))
    with pytest.raises(ValueError, match="logits after are not all finite"):
        compare_logits(net, lambda x: net(x) * float("nan"), images())
    with pytest.raises(ValueError, match="shapes"):
        compare_logits(net, logits_of(net, images(n=3)), images())
