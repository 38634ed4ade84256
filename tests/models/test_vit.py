"""The model as a whole: options, their refusal, configs, noise, precision, compilation."""

import copy
import json

import pytest
import torch

from vit_gelu.activations import ACTIVATIONS
from vit_gelu.activations.compiled import cpu_options
from vit_gelu.models import VisionTransformer, build_vit

SMALL = {"image_size": 8, "patch_size": 4, "num_classes": 5, "embed_dim": 24, "depth": 3, "num_heads": 3}


def images(b: int = 4) -> torch.Tensor:
    return torch.randn(b, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_block_has_an_activation_of_its_own(name):
    vit = VisionTransformer(**SMALL, activation=name)
    kind = type(ACTIVATIONS[name].factory())
    assert [type(block.mlp.act) for block in vit.blocks] == [kind] * 3
    assert len({id(block.mlp.act) for block in vit.blocks}) == 3
    if ACTIVATIONS[name].learnable:
        assert len({id(p) for block in vit.blocks for p in block.mlp.act.parameters()}) % 3 == 0
    vit(images()).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vit.parameters())


def test_activation_kwargs_reach_every_block():
    vit = VisionTransformer(**SMALL, activation="elu", activation_kwargs={"alpha": 0.3})
    assert [block.mlp.act.alpha for block in vit.blocks] == [0.3] * 3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_size": (8, 12), "patch_size": [4, 2]},
        {"activation": "elu", "activation_kwargs": {"alpha": 0.3}},
        {"activation": "gelu_learnable", "dropout": 0.1, "drop_path": 0.1, "layer_scale": 0.1},
        {"pooling": "mean", "class_token": False, "register_tokens": 2, "position_embedding": "sincos2d"},
        {"representation_size": 9, "zero_init_head": True, "init": "mimetic", "attention": "sdpa"},
    ],
    ids=str,
)
def test_config_rebuilds_the_model(options):
    torch.manual_seed(0)
    vit = VisionTransformer(**{**SMALL, **options})
    again = VisionTransformer(**json.loads(json.dumps(vit.config)))
    assert again.config == vit.config
    state = again.state_dict()
    assert vit.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in vit.state_dict().items())


def test_config_is_a_copy():
    kwargs = {"alpha": 0.3}
    vit = VisionTransformer(**SMALL, activation="elu", activation_kwargs=kwargs)
    kwargs["alpha"] = 7.0
    assert vit.config["activation_kwargs"] == {"alpha": 0.3}


def test_no_weight_decay():
    vit = VisionTransformer(**SMALL, register_tokens=1, activation="gelu_learnable")
    acts = {f"blocks.{i}.mlp.act.{p}" for i in range(3) for p in ("mu", "log_sigma")}
    for model in (vit, copy.deepcopy(vit)):
        assert model.no_weight_decay() == {"pos_embed", "cls_token", "reg_token"} | acts


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, 5),
        ({"register_tokens": 3}, 8),
        ({"pooling": "mean", "class_token": False}, 4),
        ({"pooling": "mean", "class_token": False, "register_tokens": 2, "image_size": (8, 16)}, 10),
    ],
)
def test_num_tokens(options, tokens):
    vit = VisionTransformer(**{**SMALL, **options})
    x = torch.zeros(2, 3, *vit.config["image_size"])
    assert vit.num_tokens == tokens
    assert vit.forward_features(x).shape == (2, tokens, 24)
    torch.testing.assert_close(vit.forward_head(vit.forward_features(x)), vit(x))


def test_set_attention():
    vit = VisionTransformer(**SMALL)
    reference = vit(images())
    for attention in ("explicit", "matmul", "strided", "sdpa", "math", "auto"):
        vit.set_attention(attention)
        assert vit.config["attention"] == attention
        for block in vit.blocks:
            assert block.attn.kernel_training == block.attn.kernel_evaluation == attention
        torch.testing.assert_close(vit(images()), reference)
    vit.use_attention("strided", "flash")
    assert (vit.attention_in_use, vit.config["attention"]) == (("strided", "flash"), "auto")
    with pytest.raises(ValueError, match="Did you mean 'sdpa'"):
        vit.set_attention("sdp")


def test_dropout_is_where_the_paper_has_it():
    """Appendix B.1: after every dense layer but qkv, and after the position embedding; not at the head."""
    vit = VisionTransformer(**SMALL, dropout=0.1, attention_dropout=0.2)
    places = {name: m.p for name, m in vit.named_modules() if isinstance(m, torch.nn.Dropout) and m.p}
    block = {"attn.attn_drop": 0.2, "attn.proj_drop": 0.1, "mlp.drop1": 0.1, "mlp.drop2": 0.1}
    assert places == {
        "pos_drop": 0.1,
        **{f"blocks.{i}.{name}": p for i in range(3) for name, p in block.items()},
    }


@pytest.mark.parametrize("attention", ["explicit", "sdpa"])
def test_bfloat16_autocast_is_close_and_trains_every_parameter(attention):
    vit = VisionTransformer(**SMALL, attention=attention, qk_norm=True, layer_scale=0.1, register_tokens=1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = vit(images())
    torch.testing.assert_close(logits.float(), vit(images()), rtol=0.05, atol=0.02)
    logits.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vit.parameters())


def test_default_dtype_does_not_change_what_is_drawn():
    reference = VisionTransformer(**SMALL, seed=0)
    torch.set_default_dtype(torch.float64)
    try:
        wide = VisionTransformer(**SMALL, seed=0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert wide.head.weight.dtype == torch.float64
    assert torch.equal(wide.head.weight.float(), reference.head.weight)


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()  # compiled variants of one function are counted, and limited, per process
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "options",
    [
        {
            "depth": 2,
            "activation": "gelu_learnable",
            "drop_path": 0.2,
            "dropout": 0.1,
            "attention_dropout": 0.1,
        },
        {"attention": "sdpa", "register_tokens": 2, "qk_norm": True, "layer_scale": 0.1, "pooling": "mean"},
        {"activation": "swiglu", "position_embedding": "sincos2d", "no_embed_class": True},
    ],
    ids=str,
)
def test_compiles_as_one_graph(fresh_compiler, options):
    vit = VisionTransformer(**{**SMALL, "depth": 1, **options})
    compiled = torch.compile(vit, fullgraph=True, backend="aot_eager")
    compiled(images()).square().mean().backward()
    assert all(p.grad is not None for p in vit.parameters())
    vit.eval()
    torch.testing.assert_close(compiled(images()), vit(images()))


def test_compiled_code_is_right_and_follows_set_attention(fresh_compiler):
    vit = VisionTransformer(8, 4, embed_dim=16, depth=1, num_heads=2, num_classes=5)
    eager = copy.deepcopy(vit)
    vit.compile(fullgraph=True, options=cpu_options())
    assert vit.state_dict().keys() == eager.state_dict().keys()
    for attention in ("explicit", "sdpa"):
        vit.set_attention(attention)
        for model in (vit, eager):
            model.zero_grad()
            model(images()).square().mean().backward()
        torch.testing.assert_close(vit(images()), eager(images()))
        for mine, reference in zip(vit.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-4, atol=1e-6)


def refuse(match, **options):
    return pytest.param(options, match, id=", ".join(f"{k}={v}" for k, v in options.items()))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        refuse(
            "--model.patch_size 5 does not divide the image size 32; divisors: 1, 2, 4, 8, 16, 32",
            image_size=32,
            patch_size=5,
        ),
        refuse("--model.patch_size 4 does not divide the image width 6", image_size=(8, 6)),
        refuse(
            "--model.patch_size 24 is not a multiple of 16", image_size=48, patch_size=24, stem="resnet50"
        ),
        refuse(
            "--model.patch_size 16 does not divide .* 24; valid: none",
            image_size=24,
            patch_size=16,
            stem="resnet50",
        ),
        refuse(
            "--model.num_heads 5 does not divide the width 24; divisors: 1, 2, 3, 4, 6, 8, 12, 24",
            num_heads=5,
        ),
        refuse("--model.image_size 0: must be a whole number, at least 1", image_size=0),
        refuse("--model.image_size .*: must be one whole number, or two", image_size=(8, 8, 8)),
        refuse("--model.image_size big", image_size="big"),
        refuse("--model.depth 0", depth=0),
        refuse("--model.num_heads -1", num_heads=-1),
        refuse("--model.embed_dim 24.0", embed_dim=24.0),
        refuse("--model.in_channels True", in_channels=True),
        refuse("--model.num_classes -1: must be a whole number, at least 0", num_classes=-1),
        refuse("--model.register_tokens -2", register_tokens=-2),
        refuse("--model.representation_size 0", representation_size=0),
        refuse("--model.mlp_ratio 0", mlp_ratio=0),
        refuse("--model.mlp_ratio nan", mlp_ratio=float("nan")),
        refuse("--model.mlp_hidden 0", mlp_ratio=0.01),
        refuse("--model.norm_eps -1.0", norm_eps=-1.0),
        refuse("--model.layer_scale 0: must be a positive number", layer_scale=0),
        refuse("--model.dropout -0.1: must be at least 0 and less than 1", dropout=-0.1),
        refuse("--model.attention_dropout 1.0", attention_dropout=1.0),
        refuse("--model.drop_path 1.5", drop_path=1.5),
        refuse("--model.drop_path nan", drop_path=float("nan")),
        refuse("--model.pooling: unknown pooling 'means'. Did you mean 'mean'", pooling="means"),
        refuse("--model.pooling cls needs --model.class_token true", class_token=False),
        refuse("unknown position embedding 'sincos'. Did you mean 'sincos2d'", position_embedding="sincos"),
        refuse("an embed_dim divisible by 4, not 18", embed_dim=18, position_embedding="sincos2d"),
        refuse("--model.attention: unknown attention 'flush'. Did you mean 'flash'", attention="flush"),
        refuse(
            "strided: has no dropout, and --model.attention_dropout is 0.1",
            attention="strided",
            attention_dropout=0.1,
        ),
        refuse("--model.mlp_memory: unknown mlp memory 'leen'. Did you mean 'lean'", mlp_memory="leen"),
        refuse("--model.stem: unknown stem 'resnet'. Did you mean 'resnet50'", stem="resnet"),
        refuse("--model.init: unknown init 'mimetics'. Did you mean 'mimetic'", init="mimetics"),
        refuse("unknown activation 'glue'. Did you mean 'gelu'", activation="glue"),
        refuse("activation 'relu'", activation="relu", activation_kwargs={"alpha": 1.0}),
        refuse("--model.seed 1.5", seed=1.5),
    ],
)
def test_bad_options_are_refused_in_the_users_terms(options, match):
    with pytest.raises(ValueError, match=match) as caught:
        VisionTransformer(**{**SMALL, **options})
    assert len(str(caught.value)) < 500


def test_wrong_images_are_refused():
    vit = VisionTransformer(**SMALL)
    for shape in ((2, 3, 8, 12), (2, 1, 8, 8), (3, 8, 8)):
        with pytest.raises(ValueError, match=r"the model takes \(3, 8, 8\)"):
            vit(torch.zeros(shape))


def test_build_vit():
    vit = build_vit("vit_tiny", image_size=32, patch_size=4, num_classes=10, depth=1, activation="relu")
    assert vit(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert (vit.config["embed_dim"], vit.config["depth"]) == (192, 1)
    with pytest.raises(ValueError, match=r"unknown model 'vit_tinny'\. Did you mean 'vit_tiny'"):
        build_vit("vit_tinny")
    with pytest.raises(
        ValueError, match=r"--model\.patchsize: no such option\. Did you mean --model\.patch_size"
    ):
        build_vit("vit_tiny", patchsize=4)


@pytest.mark.parametrize("activation", ["gelu", "gelu_stochastic", "swiglu", "prelu"])
def test_learns_one_batch_by_heart(activation):
    torch.manual_seed(0)
    vit = VisionTransformer(**SMALL, activation=activation)
    x, y = images(10), torch.arange(10) % 5
    optimizer = torch.optim.AdamW(vit.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(vit(x), y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02
