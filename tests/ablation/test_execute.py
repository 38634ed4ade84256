"""An ablation on this machine: every run to its end or a reason, nothing twice, the same numbers as run alone."""

import json
import os
import random
import shutil
import signal
import threading
import time

import pytest
import yaml

from benchmarks import ablation_kill
from tests.ablation.plans import TRAIN, write_plan
from tests.training.helpers import assert_same_weights, metrics, weights
from vit_gelu.cli.ablate import main

# Long enough to be stopped in the middle on any machine.
LONG = TRAIN | {"trainer.max_epochs": 500}


def records(out, kind="runs"):
    return {
        path.parent.name: json.loads(path.read_text()) for path in sorted((out / kind).glob("*/record.json"))
    }


def of_arm(out, arm):
    return [r for r in records(out).values() if r["arm"] == arm]


def test_bad_arms_are_rows_and_the_others_finish(ended):
    _, out, status = ended
    assert status == 1
    for arm in ("gelu", "gelu_stochastic"):
        assert [(r["status"], r["seed"]) for r in of_arm(out, arm)] == [("finished", 0), ("finished", 1)]
    assert [(r["status"], r["diverged_step"]) for r in of_arm(out, "wild")] == [("diverged", 1)] * 2
    failures = [json.loads(p.read_text()) for p in sorted((out / "failures").glob("*.json"))]
    assert [(f["arm"], f["seed"]) for f in failures] == [("heads", 0), ("heads", 1)]
    for failure in failures:
        assert "--model.num_heads 5" in failure["reason"]
        assert "--model.num_heads 5" in (out / failure["log"]).read_text()


def test_stochastic_and_deterministic_arms_are_paired(ended):
    _, out, _ = ended
    hashes = {arm: [r["order_hash"] for r in of_arm(out, arm)] for arm in ("gelu", "gelu_stochastic")}
    assert hashes["gelu"] == hashes["gelu_stochastic"]
    assert hashes["gelu"][0] != hashes["gelu"][1]


def test_a_run_in_a_worker_is_the_run_alone(ended, tmp_path):
    """The worker had carried out six other runs, two of which went wrong, when it came to this one."""
    from vit_gelu.cli.train import main as train

    _, out, _ = ended
    (folder,) = (out / "runs").glob("gelu_stochastic-seed1-*")
    record = json.loads((folder / "record.json").read_text())
    recipe = next((out / "configs").glob("gelu_stochastic-*.yaml"))
    assert train(["--config", str(recipe), "--seed", "1", "--out", str(tmp_path / "alone")]) == 0
    assert_same_weights(weights(folder), weights(tmp_path / "alone"))
    assert metrics(folder) == metrics(tmp_path / "alone")
    alone = json.loads((tmp_path / "alone" / "record.json").read_text())
    for key in ("order_hash", "config_hash", "arm", "val", "test", "steps"):
        assert alone[key] == record[key], key


def test_again_repeats_nothing_that_is_final_and_more_seeds_extend(ended, capsys, tmp_path):
    out = shutil.copytree(ended[1], tmp_path / "out")
    before = ablation_kill.finished(out)
    arms = yaml.safe_load((out / "plan.yaml").read_text())["arms"]
    assert main([str(out), "--seeds", "3"]) == 1
    after = ablation_kill.finished(out)
    assert before.items() <= after.items()
    new = [name for name in after if name not in before]
    assert [name.rsplit("-", 1)[0] for name in new] == ["gelu-seed2", "gelu_stochastic-seed2", "wild-seed2"]
    written = yaml.safe_load((out / "plan.yaml").read_text())
    assert written["seeds"] == [0, 1, 2]
    assert written["arms"] == arms
    shown = capsys.readouterr().out
    assert "12 runs: 6 finished, 3 failed, 3 diverged" in shown
    assert "does not divide" in shown


def test_stops_on_a_signal_saves_and_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.delattr(signal, "SIGHUP")  # as on Windows
    plan = write_plan(tmp_path / "plan.yaml", seeds=1, arms=["gelu"], overrides=LONG)
    out = tmp_path / "out"

    def stop():
        deadline = time.monotonic() + 600
        while not list(out.glob("runs/*/checkpoints/last.ckpt")) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop)
    thread.start()
    status = main([plan, "--out", str(out), "--jobs-per-device", "2"])
    thread.join()
    assert status == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    message = capsys.readouterr().err.splitlines()
    assert message[-2].endswith("Go on with:")
    assert message[-1].strip() == f"vit-gelu ablate {out} --jobs-per-device 2"
    (folder,) = (out / "runs").iterdir()
    saved = weights(folder, "global_step")
    assert 0 < saved < 10 * LONG["trainer.max_epochs"]
    assert not (folder / "record.json").exists()
    assert not list((out / "failures").glob("*")), "a run that was stopped has not failed"
    assert "SIGTERM" in (out / "logs" / f"{folder.name}.log").read_text()


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="finds workers in /proc")
def test_killed_and_gone_on_with_it_is_the_ablation_left_alone(ended, tmp_path):
    _, reference, _ = ended
    plan = write_plan(tmp_path / "plan.yaml", seeds=2)
    clock, out = random.Random(1), tmp_path / "out"
    ablation_kill.kill_once(plan, out, "ablation", clock, 1.0)
    # The worker of the first may still be saving. Killed itself, the second's is replaced, and the ablation ends.
    ablation_kill.kill_once(str(out), out, "worker", clock, 1.0)
    assert len(ablation_kill.finished(out)) == 4
    for name in ablation_kill.finished(out):
        assert_same_weights(weights(reference / "runs" / name), weights(out / "runs" / name))
        assert metrics(reference / "runs" / name) == metrics(out / "runs" / name)
        one, other = records(reference)[name], records(out)[name]
        for key in ("order_hash", "config_hash", "arm", "val", "test", "steps"):
            assert one[key] == other[key], key
    assert not list(out.rglob("*.partial"))


def test_dry_run_measures_and_writes_nothing(tmp_path, capsys, monkeypatch):
    plan = write_plan(tmp_path / "plan.yaml")
    monkeypatch.chdir(tmp_path)
    assert main([plan, "--dry-run"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["plan.yaml"]
    shown = capsys.readouterr().out
    assert "gelu, gelu_stochastic: 2 seeds each, 4 runs, 1 at a time" in shown.replace(" (baseline)", "")
    assert len([line for line in shown.splitlines() if line.startswith("  gelu")]) == 4
    assert "for 4 runs" in shown
    assert "40 steps" in shown
