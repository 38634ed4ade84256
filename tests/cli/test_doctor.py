"""``vit-gelu doctor``: sound installations and broken ones."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests.training.helpers import ROOT
from vit_gelu.cli import doctor, machine, packages
from vit_gelu.cli.errors import guarded
from vit_gelu.cli.findings import OK, PROBLEM, WARNING
from vit_gelu.cli.probe import look_at_data

REQUIREMENTS = ["torch>=2.9", "numpy>=1.26", "jsonargparse[signatures]>=4.40,<5", "pytest; extra == 'test'"]


def fake_package(folder, name, version, code="", requires=()):
    """A package on disk as pip would leave it; ``code`` runs when it is imported."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {r}" for r in requires)]) + "\n")


def run_doctor(*argv, path=None, **env):
    """The doctor in a process of its own, with a folder before all installed packages."""
    places = [str(p) for p in (path, ROOT) if p]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(places), **env}
    command = [sys.executable, "-m", "vit_gelu", "doctor", *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def by_name(document):
    return {finding["name"]: finding for finding in document["findings"]}


def test_this_installation(tmp_path, capsys):
    np_file = tmp_path / "cifar10.npz"
    with zipfile.ZipFile(np_file, "w") as archive:
        archive.writestr("train_images.npy", "x")
    status = doctor.main(["--data.root", str(tmp_path), "--json"])
    document = json.loads(capsys.readouterr().out)
    found = by_name(document)
    assert status == (1 if any(f["status"] == "problem" for f in document["findings"]) else 0)
    assert document["problems"] == sum(f["status"] == "problem" for f in document["findings"])
    assert found["torch"]["status"] == "ok"
    assert torch.__version__ in found["torch"]["found"]
    assert f"torch {importlib.metadata.version('torch')}" in found["packages"]["found"]
    assert found["cifar10"] == {"name": "cifar10", "status": "ok", "found": str(np_file), "advice": ""}
    assert found["cifar100"]["status"] == "warning"
    if torch.cuda.is_available():
        assert torch.cuda.get_device_name(0) in found["cuda:0"]["found"]
    for finding in document["findings"]:
        assert finding["status"] == "ok" or finding["advice"], finding


def test_table_in_a_process(tmp_path):
    (tmp_path / "cifar100.npz").write_bytes(b"PK truncated")
    done = run_doctor("--data.root", tmp_path)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    row = next(i for i, line in enumerate(lines) if "cifar100 " in line)
    assert lines[row].startswith("problem")
    assert "truncated" in lines[row] + lines[row + 1]
    assert any("-> delete it" in line for line in lines[row:])
    assert max(map(len, lines)) <= 110
    assert lines[-1].startswith("1 problem, ")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise ImportError('libcudart.so.99: cannot open shared object file')", "libcudart.so.99"),
        ("raise RuntimeError('half\\nbroken')", "broken"),
        ("import os; os._exit(77)", "status 77"),
    ],
)
def test_torch_that_cannot_be_imported(tmp_path, code, expected):
    fake_package(tmp_path / "stub", "torch", "2.15.0", code)
    done = run_doctor("--json", "--compile", path=tmp_path / "stub")
    assert done.returncode == 1
    found = by_name(json.loads(done.stdout))
    assert found["torch"]["status"] == "problem"
    assert "cannot be imported" in found["torch"]["found"]
    assert expected in found["torch"]["found"]
    assert "pip install" in found["torch"]["advice"]
    assert "not looked for" in found["data"]["found"]
    assert {"python", "processor", "compiler", "runs"} <= found.keys()


def test_torchvision_of_another_torch(tmp_path):
    message = "operator torchvision::nms does not exist"
    fake_package(
        tmp_path / "stub", "torchvision", "0.99.0", f"raise RuntimeError('{message}')", ["torch (==99.0)"]
    )
    done = run_doctor("--json", path=tmp_path / "stub")
    assert done.returncode == 1
    found = by_name(json.loads(done.stdout))
    assert message in found["torchvision"]["found"]
    assert "force-reinstall torch torchvision" in found["torchvision"]["advice"]
    assert "needs torch==99.0; torch " in found["torchvision, torch"]["found"]
    assert found["torchvision, torch"]["status"] == "problem"
    assert found["torch"]["status"] == "ok"


def test_malware_is_named_and_never_imported(tmp_path):
    trace = tmp_path / "it ran"
    fake_package(tmp_path / "stub", "lightning", "2.6.3", f"open({str(trace)!r}, 'w').close()")
    done = run_doctor(path=tmp_path / "stub")
    assert done.returncode == 1
    assert not trace.exists()
    text = " ".join(done.stdout.split())
    assert "lightning 2.6.3 is malware" in text
    assert "pip uninstall -y lightning" in text
    assert "2.6.4" in text


def test_packages_missing_too_old_and_too_new(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "numpy":
            raise importlib.metadata.PackageNotFoundError(name)
        return {"torch": "2.8.1", "jsonargparse": "5.0.0"}.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = {f.name: f for f in packages.check_packages(REQUIREMENTS)}
    assert found.keys() == {"torch", "numpy", "jsonargparse"}
    assert {f.status for f in found.values()} == {PROBLEM}
    assert "not installed" in found["numpy"].found
    assert found["torch"].advice == 'python -m pip install "torch>=2.9"'
    assert "2.8.1; needed: >=2.9" in found["torch"].found
    assert found["jsonargparse"].found.startswith("5.0.0; needed: ")
    assert '"jsonargparse[signatures]<5,>=4.40"' in found["jsonargparse"].advice


def test_local_and_development_versions_count(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.16.0.dev20270101+cu130")
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: None)
    (found,) = packages.check_packages(["torch>=2.9"])
    assert found.status == OK


def test_what_an_extra_needs_is_looked_at(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "docstring-parser":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    problems = [f for f in packages.check_packages(["jsonargparse[signatures]"]) if f.status == PROBLEM]
    assert [f.name for f in problems] == ["jsonargparse, docstring-parser"]
    assert "jsonargparse[signatures]" in problems[0].advice


def test_python_and_own_requirements():
    specifier, requirements = packages.own_metadata()
    assert packages.check_python(specifier).status == OK
    old = packages.check_python("<3")
    assert (old.status, "<3" in old.advice) == (PROBLEM, True)
    names = {
        r.split(";")[0].split("[")[0].split(">")[0].split("<")[0].split("=")[0].strip() for r in requirements
    }
    assert {"torch", "torchvision", "timm", "lightning", "torchmetrics", "numpy"} <= names


def gpu_facts(**change):
    facts = {"cuda_build": "13.0", "hip_build": None, "gpus": [], "mps": False, "warnings": []}
    return facts | change


@pytest.mark.parametrize(
    ("facts", "driver", "hardware", "visible", "status", "expected"),
    [
        ({}, None, False, None, OK, "none"),
        ({"cuda_build": None}, "580.1", True, None, PROBLEM, "built without CUDA"),
        ({"warnings": ["driver is too old"]}, "470.1", True, None, PROBLEM, "driver is too old"),
        ({}, None, True, None, PROBLEM, "without a working driver"),
        ({}, "580.1", True, "", WARNING, "hidden"),
        ({"mps": True, "cuda_build": None}, None, False, None, OK, "Apple"),
    ],
)
def test_gpus_that_torch_does_not_see(monkeypatch, facts, driver, hardware, visible, status, expected):
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: driver)
    monkeypatch.setattr(doctor, "nvidia_hardware", lambda: hardware)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    (finding,) = doctor.check_gpus(gpu_facts(**facts))
    assert finding.status == status
    assert expected in finding.found
    assert status == OK or finding.advice


def test_gpus_that_torch_sees():
    gpu = {"name": "NVIDIA X", "memory": 80 * 2**30, "capability": "9.0", "error": None, "free": 79 * 2**30}
    broken = gpu | {"error": "no kernel image is available"}
    busy = gpu | {"free": 2**30}
    found = doctor.check_gpus(gpu_facts(gpus=[gpu, broken, busy]))
    assert [f.name for f in found] == ["cuda:0", "cuda:1", "cuda:2"]
    assert [f.status for f in found] == [OK, PROBLEM, WARNING]
    assert "NVIDIA X, 80 GiB" in found[0].found
    assert "no kernel image" in found[1].found


def test_compiler(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    if shutil.which("g++") and Path(machine.sysconfig.get_paths()["include"], "Python.h").exists():
        assert machine.check_compiler().status == OK
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    missing = machine.check_compiler()
    assert missing.status == WARNING
    assert "no no-such-compiler" in missing.found
    assert "--model.compile false" in missing.advice
    for complaint, expected in [
        ("Python.h: No such file or directory", "headers"),
        ("cannot find -lgomp", "OpenMP"),
        ("internal compiler failure", "repair"),
    ]:
        script = tmp_path / "c++"
        script.write_text(f"#!/bin/sh\necho 'x.cpp:2: fatal error: {complaint}' >&2\nexit 1\n")
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        broken = machine.check_compiler()
        assert broken.status == WARNING
        assert complaint in broken.found
        assert expected in broken.advice


def test_threads_and_bfloat16(monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    monkeypatch.setattr(machine, "bfloat16_instructions", lambda: "amx_bf16")
    assert machine.check_processor(4, has_gpu=False).status == OK
    assert "OMP_NUM_THREADS=4" in machine.check_processor(16, has_gpu=False).advice
    assert "OMP_NUM_THREADS=4" in machine.check_processor(1, has_gpu=False).advice
    assert machine.check_processor(1, has_gpu=True).status == OK
    assert machine.check_processor(None, has_gpu=False).status == OK
    monkeypatch.setattr(machine, "bfloat16_instructions", lambda: None)
    monkeypatch.setattr(machine, "lacks_bfloat16", lambda: False)  # a system that does not tell
    assert "not known" in machine.check_processor(4, has_gpu=False).found
    assert machine.check_processor(4, has_gpu=False).status == OK
    monkeypatch.setattr(machine, "lacks_bfloat16", lambda: True)
    assert "32-true" in machine.check_processor(4, has_gpu=False).advice
    assert machine.check_processor(4, has_gpu=True).status == OK


def test_room(tmp_path, monkeypatch):
    assert machine.check_room("x", tmp_path / "a" / "b", needed=True).status == OK
    assert not (tmp_path / "a").exists()
    assert list(tmp_path.iterdir()) == []
    if Path("/proc/self").exists():  # nobody can write there, not even root
        assert machine.check_room("x", Path("/proc/x"), needed=True).status == PROBLEM
        assert machine.check_room("x", Path("/proc/x"), needed=False).status == OK
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=10 * 2**20))
    assert machine.check_room("x", tmp_path, needed=True).status == WARNING


@pytest.mark.parametrize(
    ("files", "status", "expected"),
    [
        (["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "batches.meta"],
         OK, "cifar-10-batches-py"),
        (["data_batch_1", "data_batch_2", "data_batch_4", "data_batch_5", "batches.meta"],
         PROBLEM, "lacks data_batch_3"),
    ],
)  # fmt: skip
def test_official_folder(tmp_path, files, status, expected):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*files, "test_batch"]:
        (folder / name).write_bytes(b"")
    found = {f.name: f for f in doctor.check_data(look_at_data(str(tmp_path)), explicit=True)}
    assert found["cifar10"].status == status
    assert expected in found["cifar10"].found


def test_archive_with_a_wrong_checksum_and_folder_that_is_not_there(tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"half")
    found = {f.name: f for f in doctor.check_data(look_at_data(str(tmp_path)), explicit=True)}
    assert found["cifar100"].status == PROBLEM
    assert "checksum" in found["cifar100"].found
    (missing,) = doctor.check_data({"root": str(tmp_path / "no"), "found": {}, "names": []}, explicit=True)
    assert missing.status == PROBLEM
    assert "no such folder" in missing.found


def test_mistakes(capsys):
    assert guarded("vit-gelu doctor", lambda: doctor.main(["--data.rot", "x"])) == 2
    assert "Did you mean --data.root?" in capsys.readouterr().err
