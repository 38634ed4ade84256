"""Every option that stock timm can express is exported exactly; the others are refused by name."""

import json

import pytest
import timm
import torch
import yaml

from tests.cli.conftest import write_checkpoint
from tests.export.conftest import SMALL, scramble
from vit_gelu.cli.errors import guarded
from vit_gelu.cli.export import main
from vit_gelu.data import load_source
from vit_gelu.export.trained import read_trained
from vit_gelu.export.verification import check_images
from vit_gelu.models import VisionTransformer
from vit_gelu.models.timm_model import TimmModel
from vit_gelu.training import load_network


def export(file, out, *more):
    assert main([str(file), "--format", "timm", "--out", str(out), *more]) == 0
    return json.loads((out / "export.json").read_text())


def refusal(capsys, file, out, *more):
    capsys.readouterr()
    assert (
        guarded("vit-gelu export", lambda: main([str(file), "--format", "timm", "--out", str(out), *more]))
        == 2
    )
    captured = capsys.readouterr()
    assert captured.out == ""
    assert not out.exists()
    assert len(captured.err.splitlines()) <= 5
    return captured.err


EXPRESSIBLE = {
    "as it comes": {},
    "mean pooling": {"pooling": "mean"},
    "mean pooling, norm before": {"pooling": "mean", "fc_norm": False},
    "class token, norm after": {"fc_norm": True},
    "no class token": {"pooling": "mean", "class_token": False},
    "registers": {"register_tokens": 3},
    "registers, no_embed_class": {"register_tokens": 2, "no_embed_class": True},
    "sincos2d": {"position_embedding": "sincos2d"},
    "no position embedding": {"position_embedding": "none"},
    "qk_norm, layer_scale": {"qk_norm": True, "layer_scale": 0.1},
    "pre_norm, no qkv bias": {"pre_norm": True, "qkv_bias": False},
    "eps of CLIP": {"norm_eps": 1e-5, "pre_norm": True, "activation": "gelu_sigmoid"},
    "eps of CLIP alone": {"norm_eps": 1e-5},
    "odd hidden size": {"mlp_hidden": 37},
    "mlp_ratio": {"mlp_ratio": 2.7},
    "gated, layer_scale": {"activation": "swiglu", "layer_scale": 0.1},
    "gated, odd hidden size": {"activation": "geglu", "mlp_hidden": 37},
    "patches that are not square": {"patch_size": (4, 8)},
    "one channel": {"in_channels": 1},
    "what only training sees": {
        "dropout": 0.2,
        "drop_path": 0.1,
        "patch_dropout": 0.5,
        "mlp_memory": "lean",
        "residual_precision": "half",
    },
    "hybrid, stem alone": {"stem": "resnet_stem", "image_size": 32, "patch_size": 8},
    "hybrid, resnet26": {"stem": "resnet26", "image_size": 32, "patch_size": 32, "depth": 1},
}


@pytest.mark.parametrize("options", EXPRESSIBLE.values(), ids=EXPRESSIBLE)
def test_expressible(checkpoint, tmp_path, options):
    file = checkpoint(**options)
    export(file, tmp_path / "out")
    net, _ = load_network(file)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = torch.randn(3, net.config["in_channels"], *net.config["image_size"])
    with torch.no_grad():
        expected = net(x)
        assert expected.std() > 0.01
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


REFUSED = {
    "gelu_learnable": ({"activation": "gelu_learnable"}, "no activation gelu_learnable"),
    "laplace_lu": ({"activation": "laplace_lu"}, "no activation laplace_lu"),
    "relu_squared": ({"activation": "relu_squared"}, "no activation relu_squared"),
    "softplus": ({"activation": "softplus"}, "no activation softplus"),
    "elu with alpha": ({"activation": "elu", "activation_kwargs": {"alpha": 0.5}}, "takes no options"),
    "slopes per channel": (
        {"activation": "prelu", "activation_kwargs": {"num_channels": 64}},
        "takes no options",
    ),
    "own": ({"activation": "tests.models.test_swap.Sine"}, "no activation Sine()"),
    "conv stem": ({"stem": "conv"}, "no ViT whose stem is conv"),
    "representation_size": ({"representation_size": 8}, "representation_size"),
    "norm_eps": ({"norm_eps": 1e-3}, "norm_eps 0.001"),
    "gated and eps": (
        {"activation": "swiglu", "norm_eps": 1e-5},
        "both activation swiglu and norm_eps 1e-05",
    ),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_with_the_formats_that_do(checkpoint, tmp_path, capsys, options, message):
    error = refusal(capsys, checkpoint(**options), tmp_path / "out")
    assert message in error
    assert "state_dict, onnx, torch_export" in error


def test_stochastic_is_exported_as_gelu_and_that_is_said(checkpoint, tmp_path, capsys):
    export(checkpoint(activation="gelu_stochastic"), tmp_path / "out")
    assert "note: Trained with gelu_stochastic, which is exact GELU in evaluation" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_args"]["act_layer"] == "gelu"
    assert "exact GELU in evaluation" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("activation", [None, "relu", "gelu_sigmoid"])
def test_networks_of_timm(checkpoint, tmp_path, activation):
    net = TimmModel("timm/test_vit2", 3, 32, 3, activation, seed=0).eval()
    file = checkpoint(net)
    export(file, tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), load_network(file)[0](x), rtol=1e-5, atol=1e-5)


def test_a_network_that_timms_option_would_make_otherwise(checkpoint, tmp_path, capsys):
    """Some layers of this model have a fixed activation, whatever its option says; a swap takes them all."""
    net = TimmModel("timm/mobilenetv3_small_050", 3, 32, 3, "silu", seed=0)
    error = refusal(capsys, checkpoint(net), tmp_path / "out")
    assert "act_layer silu makes another mobilenetv3_small_050" in error
    net = TimmModel("timm/xcit_nano_12_p16_224", 3, 32, 3, "relu", seed=0, depth=1)
    error = refusal(capsys, checkpoint(net), tmp_path / "out")
    assert "xcit_nano_12_p16_224 takes no act_layer by name" in error


def test_card(digits_run, tmp_path):
    export(digits_run, tmp_path / "out")
    record = json.loads((digits_run / "record.json").read_text())
    text = (tmp_path / "out" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "timm"
    assert f"| digits, test | 359 | {100 * record['test']['top1']:.2f} %" in body
    assert f"| digits, validation | 144 | {100 * record['val']['top1']:.2f} %" in body
    assert "# ViT, width 48, depth 2, gelu, trained on digits" in body
    blocks = [yaml.safe_load(b.split("```")[0]) for b in body.split("```yaml\n")[1:]]
    assert blocks[0] == load_network(digits_run)[0].config
    assert blocks[1]["model"]["embed_dim"] == 48
    assert "root" not in blocks[1]["data"]
    assert str(tmp_path) not in text
    assert "not tested" not in text


def test_card_does_not_lend_results_to_other_weights(digits_run, tmp_path):
    _, card = load_network(digits_run, "best")
    export(digits_run, tmp_path / "out", "--checkpoint", "best")
    record = json.loads((digits_run / "record.json").read_text())
    said = "these weights are its `best` checkpoint" in (tmp_path / "out" / "README.md").read_text()
    assert said == (card["step"] != record["steps"])


def test_a_masked_run_is_an_encoder_without_a_head(digits_run, checkpoint, tmp_path):
    """Its card states the loss that its record has; timm makes features of it."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    file = checkpoint(num_classes=0)
    file.rename(run / "checkpoints" / "last.ckpt")
    record = json.loads((digits_run / "record.json").read_text())
    scores = {"test": None, "val": {"loss": 0.625, "n": 12}}
    (run / "record.json").write_text(json.dumps(record | scores | {"tested": None, "steps": 0}))
    (run / "config.yaml").write_text((digits_run / "config.yaml").read_text())
    export(run, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "An image encoder without a head" in text
    assert "| digits, validation | 12 | 0.6250 |" in text
    assert "top-1" not in text
    assert "image-feature-extraction" in text
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert (model.num_classes, model.pretrained_cfg["label_names"]) == (0, [])


def test_enlarged_images_are_compared_as_the_network_sees_them(checkpoint, tmp_path):
    digits = load_source("digits")
    net = VisionTransformer(image_size=16, in_channels=1, **SMALL)
    file = write_checkpoint(
        tmp_path / "net.ckpt",
        scramble(net),
        name="digits",
        fingerprint=digits.fingerprint,
        image_size=[16, 16],
        upsampled_from=[8, 8],
        in_channels=1,
        mean=[0.4],
        std=[0.2],
    )
    record = export(file, tmp_path / "out")
    assert record["verified"]["images"] == "digits, validation, enlarged to 16x16"
    images = check_images(read_trained(file, {}))
    own = digits.val.images[: len(images.pixels)].float()
    seen = torch.nn.functional.interpolate(own, (16, 16), mode="bicubic", antialias=True).clamp(0, 255)
    assert (images.pixels.float() - seen).abs().max() <= 0.5
