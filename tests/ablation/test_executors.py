"""The same ablation by other means: jobs through submitit, tasks through Ray, processes of their own."""

import io
import json
import multiprocessing
import os
import signal
import subprocess
import threading
from concurrent.futures import ProcessPoolExecutor

import pytest
from rich.console import Console

from tests.ablation.plans import TRAIN, specification
from tests.training.helpers import assert_same_weights, weights
from vit_gelu.ablation.execute import Ablation, finish
from vit_gelu.ablation.local import LocalExecutor
from vit_gelu.ablation.slots import Slot
from vit_gelu.ablation.specification import build_plan
from vit_gelu.ablation.worker_process import WorkerProcess
from vit_gelu.ablation.workspace import Workspace
from vit_gelu.cli.errors import UsageError

HEADS = {"label": "heads", "activation": "relu", "model.num_heads": 5}


def planned(folder, **changes):
    from vit_gelu.cli.resolve import Resolver

    plan = build_plan(specification(**changes), Resolver())
    workspace = Workspace(folder)
    workspace.adopt(plan)
    return plan, workspace


def carry_out(plan, workspace, executor):
    """Exit status, and what was shown."""
    text = io.StringIO()
    console = Console(file=text, soft_wrap=True)
    rows = Ablation(plan, workspace, executor, console).run()
    return finish(plan, workspace, rows, console, executor.broken), text.getvalue()


def check_one_finished_one_failed(status, shown, workspace, reference):
    assert status == 1
    assert "2 runs: 1 finished, 1 failed" in shown
    assert "--model.num_heads 5 does not divide" in shown
    (folder,) = (workspace.folder / "runs").iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert (record["arm"], record["seed"], record["status"]) == ("gelu", 0, "finished")
    assert_same_weights(weights(reference / "runs" / folder.name), weights(folder))
    assert "test top-1" in (workspace.folder / "logs" / f"{folder.name}.log").read_text()


def test_jobs_through_submitit(ended, tmp_path):
    pytest.importorskip("submitit", reason="needs the extra slurm")
    from vit_gelu.ablation.slurm import SlurmExecutor

    plan, workspace = planned(tmp_path / "out", arms=["gelu", HEADS], seeds=1)
    executor = SlurmExecutor(workspace, {"cluster": "local"}, accelerator="cpu")
    status, shown = carry_out(plan, workspace, executor)
    check_one_finished_one_failed(status, shown, workspace, ended[1])


# Submitit's debugger leaves its log files to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_jobs_in_submitits_debugger(tmp_path):
    pytest.importorskip("submitit", reason="needs the extra slurm")
    from vit_gelu.ablation.slurm import SlurmExecutor

    plan, workspace = planned(tmp_path / "out", arms=["gelu"], seeds=1)
    executor = SlurmExecutor(workspace, {"cluster": "debug"}, accelerator="cpu")
    for run in plan.runs():  # done by somebody else meanwhile: the job finds the record, and trains nothing
        folder = workspace.run_folder(run)
        folder.mkdir(parents=True)
    workspace.write_configs(plan.runs())
    record = {"schema": 1, "status": "finished", "test": {"top1": 0.5}, "seconds": 1.0}

    class Late(type(executor.executor)):
        def submit(self, function, *args):
            (folder / "record.json").write_text(json.dumps(record))
            return super().submit(function, *args)

    executor.executor.__class__ = Late
    status, shown = carry_out(plan, workspace, executor)
    assert status == 0
    assert "1 runs: 1 finished" in shown
    assert not list((workspace.folder / "logs").glob("gelu*")), "it trained all the same"


def test_a_job_whose_time_is_up_saves_and_is_queued_again(tmp_path):
    """What submitit does at a time-out: it calls ``checkpoint`` in the middle of the training, and submits the rest."""
    pytest.importorskip("submitit", reason="needs the extra slurm")
    import threading
    import time

    from vit_gelu.ablation.cluster_run import ClusterRun

    plan, workspace = planned(
        tmp_path / "out", arms=["gelu"], seeds=1, overrides=TRAIN | {"trainer.max_epochs": 500}
    )
    (run,) = plan.runs()
    workspace.write_configs([run])
    job, ended = ClusterRun(workspace.request(run), {}), []
    thread = threading.Thread(target=lambda: ended.append(job()))
    thread.start()
    last, deadline = workspace.run_folder(run) / "checkpoints" / "last.ckpt", time.monotonic() + 600
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    rest = job.checkpoint()
    thread.join(60)
    assert ended[0]["status"] == 128 + 15
    assert 0 < weights(workspace.run_folder(run), "global_step") < 5000
    assert rest.function.request == job.request


def test_no_slurm_here(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="needs the extra slurm")
    from vit_gelu.ablation.slurm import SlurmExecutor

    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="--executor slurm: srun"):
        SlurmExecutor(Workspace(tmp_path), {}, accelerator="cpu")
    with pytest.raises(UsageError, match=r"--slurm\.gpus 1"):
        SlurmExecutor(Workspace(tmp_path), {"cluster": "local", "gpus": 1}, devices_per_run=2)


def test_two_devices_a_run_are_processes_of_their_own(tmp_path):
    plan, workspace = planned(
        tmp_path / "out",
        arms=["gelu"],
        seeds=1,
        overrides=TRAIN | {"trainer.devices": 2, "trainer.max_epochs": 1},
    )
    status, _ = carry_out(plan, workspace, LocalExecutor(workspace, [Slot("CPU", {})], plan.devices_per_run))
    assert status == 0
    (path,) = workspace.folder.glob("runs/*/record.json")
    assert json.loads(path.read_text())["env"]["n_devices"] == 2


def test_a_worker_between_runs_leaves_when_it_is_asked_to(tmp_path):
    """Its first run must leave no handler behind that takes the signal, and nobody may wait for it for ever."""
    plan, workspace = planned(tmp_path / "out", arms=["gelu"], seeds=1)
    (run,) = plan.runs()
    workspace.write_configs([run])
    worker = WorkerProcess("session", {}, tmp_path / "worker.log")
    assert worker.run(workspace.request(run)).status == 0
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.process.wait(timeout=30) == -signal.SIGTERM
    worker.stop()
    assert worker.process.returncode is not None


def deaf_worker(tmp_path, monkeypatch, seconds):
    """A worker that SIGTERM does not end, whose runs are a pause; and the request of one."""
    script = (
        "import signal, sys, time\n"
        "from vit_gelu.ablation import worker\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        f"worker._session = lambda: lambda request, arguments: (time.sleep({seconds}), worker.Ended(0))[1]\n"
        "worker.main('session')\n"
    )
    plan, workspace = planned(tmp_path / "out", arms=["gelu"], seeds=1)
    (run,) = plan.runs()
    workspace.write_configs([run])
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: popen([command[0], "-c", script], **options)
    )
    worker = WorkerProcess("session", {}, tmp_path / "worker.log")
    worker._answer()
    worker.ready = True
    return worker, workspace.request(run)


def test_a_worker_whose_input_ends_leaves(tmp_path, monkeypatch):
    worker, request = deaf_worker(tmp_path, monkeypatch, 0)
    assert worker.run(request).status == 0
    worker.interrupt()
    worker.stop()
    assert worker.process.returncode == 0


def test_a_worker_asked_while_it_ends_a_run_leaves_after_it(tmp_path, monkeypatch):
    """As in its last evaluation, where no step is left that would look at the signal."""
    worker, request = deaf_worker(tmp_path, monkeypatch, 2)
    timer = threading.Timer(1.0, worker.interrupt)
    timer.start()
    assert worker.run(request).status == 0
    assert worker.process.wait(timeout=20) == 0
    worker.stop()


def test_a_worker_that_does_not_start_ends_the_ablation(tmp_path):
    plan, workspace = planned(tmp_path / "out", arms=["gelu"], seeds=3)
    broken = Slot("CPU", {"PYTHONPATH": str(tmp_path)})
    (tmp_path / "filelock.py").write_text("raise RuntimeError('broken installation')\n")
    executor = LocalExecutor(workspace, [broken])
    status, shown = carry_out(plan, workspace, executor)
    assert status == 1
    assert "a worker does not start" in executor.broken
    assert "3 runs: 1 failed, 2 not run" in shown
    assert "broken installation" in (workspace.folder / "logs" / "worker-0.log").read_text()


def on_a_ray_cluster_of_two_nodes(folder):
    """Places, exit status, and what was shown."""
    import ray
    from ray.cluster_utils import Cluster

    from vit_gelu.ablation.ray_cluster import RayExecutor

    # Ray's workers give way to everything else on the machine, such as the tests beside this one.
    os.environ.update({"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_worker_niceness": "0"})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    try:
        cluster.add_node(num_cpus=1, num_gpus=0)
        plan, workspace = planned(folder, arms=["gelu", HEADS], seeds=1)
        with pytest.raises(UsageError, match="no node has 4 CPUs"):
            RayExecutor(workspace, address=cluster.address, cpus=4, accelerator="cpu")
        executor = RayExecutor(workspace, address=cluster.address, accelerator="cpu")
        return executor.places, *carry_out(plan, workspace, executor)
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_tasks_on_a_ray_cluster_of_two_nodes(ended, tmp_path):
    pytest.importorskip("ray.cluster_utils", reason="needs the extra ray")
    # A process of its own: what Ray leaves in one ends the workers that are forked from it later (Python 3.13).
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as elsewhere:
        places, status, shown = elsewhere.submit(on_a_ray_cluster_of_two_nodes, tmp_path / "out").result()
    assert places == 2
    check_one_finished_one_failed(status, shown, Workspace(tmp_path / "out"), ended[1])


def test_no_ray_there(tmp_path):
    pytest.importorskip("ray", reason="needs the extra ray")
    from vit_gelu.ablation.ray_cluster import RayExecutor

    assert "RAY_ADDRESS" not in os.environ
    with pytest.raises(UsageError, match=r"--ray\.address auto"):
        RayExecutor(Workspace(tmp_path))
