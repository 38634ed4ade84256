"""The other scripts in miniature: what they compare is comparable, and their files hold what they print."""

import json
import sys
from types import SimpleNamespace

import input_pipeline
import kept_memory
import pytest
import startup
import step_profile
import torch
import trainer_overhead
from report import run_script
from torchvision.transforms import v2

from tests.benchmarks.helpers import small_cifar10
from vit_gelu.data import load_source


def run(script, argv) -> dict:
    """Run a script in this process; returns its result file."""
    name = script.__name__
    assert run_script(name, "", script.options(), script.run, [str(a) for a in argv]) == 0
    return json.loads(argv[-1].read_text())


def test_input_pipelines_make_the_same_batches(tmp_path, monkeypatch):
    source = load_source("cifar10", small_cifar10(tmp_path))
    # Without its random part, each must turn the same image into the same numbers.
    monkeypatch.setattr(input_pipeline, "build_policy", lambda *args: lambda images, *a, **k: images)
    for name in ("RandomCrop", "RandomHorizontalFlip"):
        monkeypatch.setattr(v2, name, lambda *args, **kwargs: v2.Identity())
    cases = input_pipeline.cases_of("crop_flip", source, 60)
    every = source.train.images
    normal = (every / 255 - torch.tensor(source.mean).view(3, 1, 1)) / torch.tensor(source.std).view(3, 1, 1)
    for name, case in cases.items():
        assert case.units == 60
        batch = case.run()
        images = batch if isinstance(batch, torch.Tensor) else batch[0]
        assert images.shape == (60, 3, 32, 32)
        assert images.dtype == torch.float32
        nearest = torch.cdist(images.flatten(1), normal.flatten(1)).min(1)
        assert nearest.values.max() < 0.05, name
        assert len(nearest.indices.unique()) == 60


def test_input_pipeline(tmp_path):
    small_cifar10(tmp_path)
    argv = ["--root", tmp_path, "--batch", 8, "--rounds", 2, "--min_seconds", 0, "--out", tmp_path / "r.json"]
    result = run(input_pipeline, argv)
    assert len(result["rows"]) == 3 * 4
    ours = {r["policy"]: r for r in result["rows"] if r["pipeline"] == "ours"}
    assert set(ours) == {"crop_flip", "cifar_randaugment", "cifar_trivialaugment"}
    assert all(r["ours_over_peer"]["n"] == 2 for r in result["rows"] if r["pipeline"] != "ours")
    assert result["machine"]["threads"] == 1


def test_startup(tmp_path, monkeypatch, capsys):
    small_cifar10(tmp_path)
    seconds = dict.fromkeys(startup.COMMANDS, 1.0) | {"import torch": 0.5, "first batch": 0.1}
    monkeypatch.setattr(startup, "run_once", lambda name, extra: seconds[name])
    result = run(startup, ["--root", tmp_path, "--runs", 6, "--out", tmp_path / "r.json"])
    assert [(g["ratio"], g["met"]) for g in result["goals"]] == [
        (1.0, True),
        (1.0, True),
        (2.0, False),
        (2.0, False),
        (0.1, True),
    ]
    assert "NO" in capsys.readouterr().out


def test_first_batch_counts_its_own_seconds(tmp_path):
    small_cifar10(tmp_path)
    assert 0 < startup.run_once("first batch", ["cifar10", str(tmp_path)]) < 60


def test_a_process_that_fails_is_no_measurement(monkeypatch):
    monkeypatch.setitem(startup.COMMANDS, "import torch", ["-S", "-c", "import torsh"])
    with pytest.raises(RuntimeError, match=r"(?s)import torch: exit status 1.*torsh"):
        startup.run_once("import torch", [])


def test_trainer_overhead(tmp_path, monkeypatch):
    monkeypatch.setattr("vit_gelu.training.speed.device_peak", lambda device, dtype: 1e9)
    argv = ["--step_ms", 1, "--chunk", 2, "--rounds", 3, "--device", "cpu", "--out", tmp_path / "r.json"]
    result = run(trainer_overhead, argv)
    assert result["trainer_over_raw"]["n"] == 3
    assert result["met"] == (result["trainer_over_raw"]["ratio"] <= 1.03)
    assert result["trainer_step_ms"][1] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone can be told to keep memory")
def test_kept_memory(tmp_path, monkeypatch, capsys):
    calls = []

    def seconds(asked, way, mode, precision):
        calls.append(way)
        return {"kept": 1.0, "given back": 1.25}[way]

    monkeypatch.setattr(kept_memory, "in_a_process", seconds)
    result = run(kept_memory, ["--rounds", 6, "--precision", "float32", "bf16", "--out", tmp_path / "r.json"])
    assert [(r["precision"], r["memory"]) for r in result["rows"]] == [
        (p, m) for p in ("float32", "bf16") for m in ("kept", "given back")
    ]
    kept, given_back = result["rows"][:2]
    assert (kept["kept_over_given_back"]["ratio"], kept["kept_over_given_back"]["n"]) == (1.25, 6)
    assert given_back["kept_over_given_back"] is None
    assert calls[:4] == ["kept", "given back", "given back", "kept"]
    assert "kept / given back" in capsys.readouterr().out


@pytest.mark.parametrize("way", ["kept", "given back"])
def test_kept_memory_in_one_process(way, monkeypatch):
    kept = []
    monkeypatch.setattr(kept_memory, "keep_freed_memory", lambda: kept.append(1))
    argv = ["--child", way, "--batch", "2", "--steps", "1", "--threads", "1"]
    assert 0 < kept_memory.time_one(kept_memory.options().parse_args(argv)) < 60
    assert len(kept) == (way == "kept")


def test_the_raw_loop_takes_the_trainer_s_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("vit_gelu.training.speed.device_peak", lambda device, dtype: 1e9)
    images = tmp_path / "images.npz"
    trainer_overhead.write_images(images, 64)
    asked = SimpleNamespace(activation="gelu", compile=False, device="cpu", log_every_n_steps=2)
    raw = trainer_overhead.RawLoop(images, 16, 6, torch.device("cpu"), "gelu", False)
    cli = trainer_overhead.build(asked, tmp_path / "run", images, 16, 6)
    cli.run_folder.prepare()
    trainer_overhead.train(cli.model, cli.datamodule, cli.trainer, cli.folder, config=cli.resolved)
    raw.compute_attention_as(cli.model)
    raw.seconds(6)
    trained = cli.model.network.state_dict()
    for name, weight in raw.module.network.state_dict().items():
        torch.testing.assert_close(weight, trained[name], rtol=1e-4, atol=1e-5)


def test_step_profile(tmp_path):
    argv = ["--size", "Ti/4@32:4", "--model.embed_dim", 24, "--model.depth", 1, "--model.num_heads", 2]
    argv += ["--mode", "eager", "--steps", 2, "--attention", "explicit", "--out", tmp_path / "r.json"]
    (row,) = run(step_profile, argv)["rows"]
    assert row["attention"] == "explicit"
    assert row["batch"] == 4
    calls = {k["name"]: k["calls"] for k in row["kernels"]}
    # Patches; queries of the class token, keys and values of all; proj, fc1, fc2, head. The images have no gradient.
    assert calls["aten::addmm"] == 7
    assert calls["aten::mm"] == 2 * 7 - 1
    assert row["kinds"]["matrix product"] <= row["device_ms"]
    assert sum(row["kinds"].values()) == pytest.approx(row["device_ms"])
    assert row["images_per_second"] == pytest.approx(4000 / row["step_ms"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_graphs_need_a_gpu(tmp_path, capsys):
    assert run_script("step_profile", "", step_profile.options(), step_profile.run, ["--mode", "graphs"]) == 2
    assert "--mode graphs: needs a CUDA GPU" in capsys.readouterr().err
