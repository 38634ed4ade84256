"""Weights and graphs: read back by what their users read them with."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vit_gelu.cli.errors import guarded
from vit_gelu.cli.export import main
from vit_gelu.export import formats, verification
from vit_gelu.models import VisionTransformer
from vit_gelu.models.swap import anneal_activations
from vit_gelu.models.timm_model import TimmModel
from vit_gelu.training import load_network

onnx_missing = [p for p in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(p) is None]
needs_onnx = pytest.mark.skipif(bool(onnx_missing), reason=f"not installed: {', '.join(onnx_missing)}")
OWN_CODE = [
    "gelu_sigmoid",
    "gelu_learnable",
    "laplace_lu",
    "prelu",
    "relu_squared",
    "mish",
    "softplus",
    "leaky_relu",
]
TIMM = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
GRAPHS = [pytest.param("onnx", marks=needs_onnx), "torch_export"]


def export(file, out, name, *more):
    assert main([str(file), "--format", name, "--out", str(out), *more]) == 0
    return json.loads((out / "export.json").read_text())


def refusal(capsys, *argv, status=2):
    capsys.readouterr()
    assert guarded("vit-gelu export", lambda: main([str(a) for a in argv])) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) <= 5
    return captured.err


def run_graph(name, folder, images):
    """As a user would, who has nothing of ours."""
    if name == "torch_export":
        with torch.no_grad():
            return torch.export.load(folder / "model.pt2").module()(images)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


def pixels(n, net):
    generator = torch.Generator().manual_seed(5)
    shape = (n, net.config["in_channels"], *net.config["image_size"])
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def normalised(images, card):
    """In numpy, from the definition."""
    mean, std = (np.array(card["data"][k])[:, None, None] for k in ("mean", "std"))
    return torch.tensor((images.numpy() / 255 - mean) / std, dtype=torch.float32)


def test_state_dict(checkpoint, tmp_path):
    file = checkpoint(activation="gelu_learnable", position_embedding="sincos2d")
    record = export(file, tmp_path / "out", "state_dict")
    net, card = load_network(file)
    safe = load_file(tmp_path / "out" / "model.safetensors")
    pickled = torch.load(tmp_path / "out" / "model.pth", weights_only=True)
    for state in (safe, pickled):
        assert state.keys() == net.state_dict().keys()
        assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    described = json.loads((tmp_path / "out" / "network.json").read_text())
    VisionTransformer(**described["network"]).load_state_dict(safe, strict=True)
    assert described["data"]["mean"] == card["data"]["mean"]
    assert record["verified"]["images"] == "noise, because somewhere.npz is not here"
    assert record["verified"]["max_abs"] < 1e-6


@pytest.mark.parametrize("preprocessing", [False, True])
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(checkpoint, tmp_path, name, preprocessing):
    file = checkpoint()
    flags = ["--with_preprocessing"] if preprocessing else []
    record = export(file, tmp_path / "out", name, *flags)
    net, card = load_network(file)
    for n in (1, 2, 7):
        images = pixels(n, net)
        ready = normalised(images, card)
        with torch.no_grad():
            expected = net(ready)
        logits = run_graph(name, tmp_path / "out", images if preprocessing else ready)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert record["input"]["dtype"] == ("uint8" if preprocessing else "float32")
    assert record["input"]["normalised"] is not preprocessing
    if name == "onnx":
        assert record["opset"] == 18


@pytest.mark.parametrize("activation", OWN_CODE)
def test_activations_with_code_of_our_own_become_graphs(checkpoint, tmp_path, activation):
    file = checkpoint(activation=activation, depth=1, image_size=8)
    export(file, tmp_path / "out", "torch_export")
    net, card = load_network(file)
    ready = normalised(pixels(5, net), card)
    with torch.no_grad():
        torch.testing.assert_close(
            run_graph("torch_export", tmp_path / "out", ready), net(ready), rtol=1e-5, atol=1e-5
        )


@needs_onnx
@pytest.mark.parametrize("activation", ["gelu_learnable", "gelu_stochastic", "swiglu"])
def test_activations_in_onnx(checkpoint, tmp_path, activation):
    file = checkpoint(activation=activation, depth=1, image_size=8)
    export(file, tmp_path / "out", "onnx")
    net, card = load_network(file)
    ready = normalised(pixels(5, net), card)
    with torch.no_grad():
        torch.testing.assert_close(
            run_graph("onnx", tmp_path / "out", ready), net(ready), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", GRAPHS)
def test_networks_of_timm_become_graphs(checkpoint, tmp_path, name):
    file = checkpoint(
        TimmModel("timm/vit_tiny_patch16_224", 3, 16, 3, "gelu_learnable", seed=0, **TIMM).eval()
    )
    export(file, tmp_path / "out", name)
    net, card = load_network(file)
    ready = normalised(pixels(3, net), card)
    with torch.no_grad():
        torch.testing.assert_close(run_graph(name, tmp_path / "out", ready), net(ready), rtol=1e-4, atol=1e-4)


def test_real_images_and_default_folder(digits_run, capsys):
    assert main([str(digits_run), "--format", "torch_export"]) == 0
    out = capsys.readouterr().out
    assert "compared on 64 images (digits, validation), in batches of 64, 1, 3" in out
    assert (digits_run / "export-torch_export" / "model.pt2").is_file()


def test_what_differs_is_deleted_and_fails(checkpoint, tmp_path, capsys, monkeypatch):
    file = checkpoint()
    real = formats.read_state_dict

    def damaged(folder, weights):
        net = real(folder, weights)
        with torch.no_grad():
            net.head.bias[0] += 0.01
        return net

    monkeypatch.setattr(formats, "read_state_dict", damaged)
    message = refusal(capsys, file, "--format", "state_dict", "--out", tmp_path / "out", status=1)
    assert "differ by 1.00e-02 from the run's" in message
    assert "nothing was kept" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.ckpt"]


class Branching(nn.Module):
    """Looks at its values: no graph can hold that."""

    def forward(self, x):
        return x.relu() if x.sum() > 0 else x


@pytest.mark.parametrize("name", GRAPHS)
def test_what_cannot_be_traced_fails_in_a_few_lines(checkpoint, tmp_path, capsys, name):
    file = checkpoint(activation="tests.export.test_formats.Branching", image_size=8)
    message = refusal(capsys, file, "--format", name, "--out", tmp_path / "out", status=1)
    assert "tests.export.test_formats.Branching in this network cannot be turned into a graph" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.ckpt"]


def test_a_failed_export_leaves_the_old_one(checkpoint, tmp_path, capsys, monkeypatch):
    file = checkpoint()
    out = tmp_path / "out"
    export(file, out, "state_dict")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    monkeypatch.setitem(formats.TOLERANCES, "state_dict", -1.0)
    refusal(capsys, file, "--format", "state_dict", "--out", out, "--overwrite", status=1)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.ckpt", "out"]


def test_nan_is_a_difference(checkpoint, tmp_path):
    from vit_gelu.export.trained import read_trained

    trained = read_trained(checkpoint(), {})
    images = verification.check_images(trained)
    with pytest.raises(verification.ExportFailed, match="differ by nan"):
        verification.verify(lambda x: trained.net(x) * float("nan"), trained, images, raw=False, relative=1.0)
    with pytest.raises(verification.ExportFailed, match="logits of shape"):
        verification.verify(lambda x: trained.net(x)[:, :2], trained, images, raw=False, relative=1.0)


def test_nothing_is_overwritten(checkpoint, tmp_path, capsys):
    file = checkpoint()
    out = tmp_path / "out"
    argv = [file, "--format", "state_dict", "--out", out]
    export(file, out, "state_dict")
    message = refusal(capsys, *argv)
    assert "holds an export already" in message
    assert "--overwrite" in message
    (out / "model.pth").write_text("stale")
    export(file, out, "state_dict", "--overwrite")
    assert torch.load(out / "model.pth", weights_only=True)

    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.tex").write_text("mine")
    message = refusal(capsys, file, "--format", "state_dict", "--out", foreign, "--overwrite")
    assert "never replaced" in message
    assert (foreign / "chapter1.tex").read_text() == "mine"
    message = refusal(capsys, file, "--format", "state_dict", "--out", file, "--overwrite")
    assert "no folder" in message


def test_annealed_half_way_is_refused(checkpoint, tmp_path, capsys):
    net = VisionTransformer(8, 4, num_classes=3, embed_dim=16, depth=1, num_heads=2, seed=0)
    anneal_activations(net, "relu").set_alpha(0.25)
    file = checkpoint(net)
    loaded, _ = load_network(file)
    assert loaded.config["anneal_alpha"] == 0.25
    message = refusal(capsys, file, "--format", "state_dict", "--out", tmp_path / "out")
    assert "half way from gelu to relu (alpha 0.25)" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["RUN"], "--format is missing: one of timm, state_dict, onnx, torch_export"),
        (["RUN", "--format", "onx"], "Did you mean 'onnx'"),
        (["nowhere", "--format", "timm"], "nowhere: no such run folder or checkpoint"),
        (["RUN", "--format", "timm", "--with_preprocessing"], "not with --format timm"),
        (["RUN", "--format", "timm", "--checkpoint", "best"], "only for a run folder"),
        (["RUN", "--format", "timm", "--overwrit"], "Did you mean --overwrite"),
    ],
)
def test_mistakes(checkpoint, capsys, argv, message):
    file = checkpoint()
    assert message in refusal(capsys, *[str(file) if a == "RUN" else a for a in argv])


def test_onnx_that_is_not_installed(checkpoint, capsys, monkeypatch):
    from vit_gelu.export import graphs

    monkeypatch.setattr(graphs, "find_spec", lambda name: None)
    message = refusal(capsys, checkpoint(), "--format", "onnx")
    assert "needs onnx, onnxscript, onnxruntime" in message
    assert "vit_gelu[onnx]" in message


def test_help_needs_no_torch():
    import subprocess
    import sys

    code = "import sys; from vit_gelu.cli import main; main(['export', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: vit-gelu export RUN --format FORMAT")
