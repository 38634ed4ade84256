"""Every peer is the model that it is said to be, and one that is not is refused."""

import json

import pytest
import torch
import training_step
from peers import PEERS, build_peer, installed_peers
from report import run_script
from torch import nn

from vit_gelu.models import VisionTransformer

OPTIONS = {"image_size": 16, "patch_size": 4, "num_classes": 7, "embed_dim": 24, "depth": 2, "num_heads": 3}


def ours(**options) -> VisionTransformer:
    net = VisionTransformer(**{**OPTIONS, **options}, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net


@pytest.mark.parametrize("name", PEERS)
def test_same_logits_and_the_same_loss_after_a_step(name):
    if name not in installed_peers():
        pytest.skip(f"{name} is not installed")
    net = ours()
    peer = build_peer(name, net)
    x = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    if peer.logit_error is None:
        assert peer.note
        assert peer.module(x).shape == (5, 7)
        return
    assert peer.logit_error < 1e-5
    labels = torch.arange(5)
    losses = []
    for module in (net, peer.module):
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
        for _ in range(3):
            loss = nn.functional.cross_entropy(module(x), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert sum(p.numel() for p in peer.module.parameters()) == sum(p.numel() for p in net.parameters())


def test_another_model_is_refused():
    with pytest.raises(RuntimeError, match=r"timm: its logits differ from ours by .*: not the same model"):
        build_peer("timm", ours(activation="relu"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--peers", "tim"], "argument --peers: unknown peers 'tim'. Did you mean 'timm'?"),
        (["--pears", "timm"], "unknown option --pears. Did you mean --peers?"),
        (["--patch_size", "5", "--peers", "timm", "--device", "cpu"], "patch_size 5"),
        (["--out", "nowhere/x.json"], "--out nowhere/x.json: there is no folder"),
    ],
)
def test_mistakes_are_answered_in_a_line(argv, message, capsys):
    status = run_script("training_step", "", training_step.options(), training_step.run, argv)
    err = capsys.readouterr().err
    assert status == 2
    assert err.startswith("benchmarks/training_step.py: error: ")
    assert message.removeprefix("argument ") in err
    assert len(err.splitlines()) <= 3


def test_the_whole_comparison_in_miniature(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training_step, "device_peak", lambda device, dtype: 1e9)
    argv = "--embed_dim 24 --depth 1 --num_heads 3 --image_size 8 --batch 4 --rounds 6 --min_seconds 0"
    argv += f" --mode eager --device cpu --peers timm --out {tmp_path}/r.json"
    assert run_script("training_step", "", training_step.options(), training_step.run, argv.split()) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert [(r["phase"], r["precision"], r["model"]) for r in result["rows"]] == [
        (phase, precision, model)
        for phase in ("train", "inference")
        for precision in ("float32", "bf16")
        for model in ("ours", "timm")
    ]
    for r in result["rows"]:
        assert r["n"] == 6
        assert r["images_per_second"] == pytest.approx(4 / (r["step_ms"] / 1e3))
        whose = "ours" if r["model"] == "ours" else "peers"
        peak, flops = (
            result["matmul_peak_flops"][r["precision"]],
            result["flops_per_image"][whose][r["phase"]],
        )
        assert r["share_of_peak"] == pytest.approx(flops * r["images_per_second"] / peak)
        assert (r["ours_over_peer"] is None) == (r["model"] == "ours")
    d, tokens = 24, 5
    block = 2 * tokens * 12 * d * d + 4 * tokens * tokens * d
    alone = (
        2 * tokens * 2 * d * d + 2 * 10 * d * d + 4 * tokens * d
    )  # all keys and values, else the class token alone
    for whose, last in (("peers", block), ("ours", alone)):
        assert result["flops_per_image"][whose]["inference"] == 2 * 4 * 48 * d + last + 2 * d * 10
    assert result["versions"]["torch"] == torch.__version__
    assert "ours / peer [95 %]" in capsys.readouterr().out
