"""One command: parts are kept, fail alone, are stopped in time, and are skipped with a reason."""

import json
import os
import time

import gpu
import pytest
from report import run_script

from tests.benchmarks.helpers import small_cifar10


def command(folder, *argv) -> int:
    given = [str(folder), "--device", "cpu", "--quick", *map(str, argv)]
    return run_script("gpu", gpu.__doc__, gpu.options(), gpu.run, given)


@pytest.fixture
def fake(monkeypatch):
    """Parts that are a line of Python each; the folder's name is {out}."""
    code = {}

    def plan(asked, device):
        made = {}
        for name in gpu.PARTS:
            result = asked.folder / f"{name}.json.partial"
            text = code.get(name, "open({out!r}, 'w').write('1'); print('table of', {name!r})")
            text = text.format(out=str(result.absolute()), name=name)
            made[name] = gpu.Part(name, ["-c", text], 5.0, result)
        return made

    monkeypatch.setattr(gpu, "plan", plan)
    monkeypatch.setattr(gpu, "reason_to_skip", lambda name, asked: "")
    return code


def statuses(out: str) -> dict[str, str]:
    lines = (line.split(": ", 1) for line in out.splitlines() if ": " in line)
    return {name: text.split()[0] for name, text in lines if name in gpu.PARTS}


def test_a_failed_part_is_reported_and_made_again(tmp_path, capsys, fake):
    folder = tmp_path / "out"
    fake["bench_Ti"] = "raise SystemExit('no such card')"
    fake["bench_S"] = "open({out!r}, 'w').write('1'); raise SystemExit(1)"
    assert command(folder) == 1
    expected = dict.fromkeys(gpu.PARTS, "finished") | {"bench_Ti": "failed", "bench_S": "wrong"}
    assert statuses(capsys.readouterr().out) == expected
    assert not (folder / "bench_Ti.json").exists()
    summary = (folder / "summary.md").read_text()
    assert "exit status 1: no such card" in summary
    assert "table of peers" in summary
    before = {name: (folder / f"{name}.json").stat().st_mtime_ns for name in gpu.PARTS if name != "bench_Ti"}
    del fake["bench_Ti"]
    assert command(folder) == 0
    expected = dict.fromkeys(gpu.PARTS, "kept") | {"bench_Ti": "finished"}
    assert statuses(capsys.readouterr().out) == expected
    assert before == {name: (folder / f"{name}.json").stat().st_mtime_ns for name in before}
    assert "table of peers" in (folder / "summary.md").read_text()


def test_a_part_that_hangs_is_stopped_with_its_children(tmp_path, capsys, fake, monkeypatch):
    monkeypatch.setattr(gpu, "QUICK_TIME_LIMIT", 21.0)
    child = tmp_path / "child"
    fake["correctness"] = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(child)!r}, 'w').write(str(p.pid)); time.sleep(600)"
    )
    monkeypatch.setattr(gpu, "PARTS", ("correctness",))
    start, real = time.monotonic(), gpu.run_part
    monkeypatch.setattr(gpu, "run_part", lambda part, folder, seconds: real(part, folder, 3.0))
    assert command(tmp_path / "out") == 1
    assert "correctness: failed not done after 3 s" in capsys.readouterr().out
    assert time.monotonic() - start < 300
    pid = int(child.read_text())
    for _ in range(100):
        if not _alive(pid):
            break
        time.sleep(0.1)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_results_of_another_machine_are_not_mixed_in(tmp_path, capsys, fake):
    folder = tmp_path / "out"
    assert command(folder, "--parts", "peers") == 0
    file = folder / "environment.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "device": "another"}))
    assert command(folder, "--parts", "peers") == 2
    assert "holds results of another device: another" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    assert command(other) == 2
    assert os.listdir(other) == ["thesis.txt"]


def test_without_cifar_the_training_is_skipped_with_a_reason(tmp_path, capsys):
    assert command(tmp_path / "out", "--parts", "end_to_end", "--root", tmp_path / "no") == 0
    assert "end_to_end: skipped CIFAR-10 is not in" in capsys.readouterr().out


def test_correctness_and_training_in_miniature(tmp_path, capsys):
    folder = tmp_path / "out"
    argv = ["--parts", "correctness", "end_to_end", "--root", small_cifar10(tmp_path)]
    assert command(folder, *argv) == 0, (folder / "summary.md").read_text()
    assert statuses(capsys.readouterr().out) == {"correctness": "finished", "end_to_end": "finished"}
    record = json.loads((folder / "end_to_end.json").read_text())
    assert (record["dataset"]["name"], record["activation"], record["status"]) == (
        "cifar10",
        "gelu",
        "finished",
    )
    assert json.loads((folder / "correctness.json").read_text())["wrong"] == []
    summary = (folder / "summary.md").read_text()
    assert "its numbers mean nothing" in summary
    assert "all within tolerance" in summary
    assert "test top-1" in summary
