"""Runs as jobs of a SLURM cluster, through submitit."""

import time
from typing import Any

import submitit

from vit_gelu.ablation.cluster_run import ClusterRun
from vit_gelu.ablation.display import Display
from vit_gelu.ablation.local import settle
from vit_gelu.ablation.one_run import Ended
from vit_gelu.ablation.plan import Run
from vit_gelu.ablation.workspace import Workspace
from vit_gelu.cli.errors import UsageError

POLL_SECONDS = 5.0
# A job whose time is up saves, is queued again and goes on; so the limit need not hold a whole run.
DEFAULT_MINUTES = 240
MOST_REQUEUES = 100
# Smaller than the least limit on the size of a job array that clusters are set up with.
ARRAY = 500
CANCEL_SECONDS = 60.0


class SlurmExecutor:
    """Submits every run as a job; one job is one run with devices of its own.

    Args:
        workspace: the ablation's folder, on a file system that all nodes share.
        settings: ``partition``, ``account``, ``qos``, ``time`` (minutes), ``gpus``, ``cpus``, ``mem`` (GB),
            ``parallel`` (most jobs at a time), ``cluster`` (``slurm``; submitit's ``local`` and ``debug`` for tests).
        devices_per_run: GPUs of a run, where ``gpus`` does not say.
        accelerator: ``trainer.accelerator`` of the runs.

    Raises:
        UsageError: there is no SLURM here.
    """

    def __init__(
        self,
        workspace: Workspace,
        settings: dict[str, Any],
        devices_per_run: int = 1,
        accelerator: str = "auto",
    ) -> None:
        self.workspace = workspace
        self.broken = ""
        self.stop_asked = 0
        self.places = settings.get("parallel") or ARRAY
        cluster = settings.get("cluster") or "slurm"
        self.poll_seconds = POLL_SECONDS if cluster == "slurm" else 0.2
        extra = {"slurm_max_num_timeout": MOST_REQUEUES} if cluster == "slurm" else {}
        try:
            self.executor = submitit.AutoExecutor(workspace.folder / "slurm", cluster=cluster, **extra)
        except RuntimeError:
            raise UsageError(
                "--executor slurm: srun is not found here; submit from a node of the cluster"
            ) from None
        gpus = settings.get("gpus")
        if gpus is None:
            gpus = 0 if accelerator == "cpu" else devices_per_run
        if 0 < gpus < devices_per_run:
            raise UsageError(f"--slurm.gpus {gpus}: a run takes {devices_per_run} devices")
        asked = {
            "name": f"ablate-{workspace.folder.name}",
            "nodes": 1,
            "tasks_per_node": 1,
            "gpus_per_node": gpus,
            "timeout_min": settings.get("time") or DEFAULT_MINUTES,
            "cpus_per_task": settings.get("cpus"),
            "mem_gb": settings.get("mem"),
            "slurm_partition": settings.get("partition"),
            "slurm_account": settings.get("account"),
            "slurm_qos": settings.get("qos"),
            "slurm_array_parallelism": self.places,
        }
        self.executor.update_parameters(**{k: v for k, v in asked.items() if v is not None})

    def run(self, runs: list[Run], display: Display) -> None:
        """Submit runs and wait for them; see ``LocalExecutor.run``."""
        jobs: dict[str, tuple[Run, Any]] = {}
        for first in range(0, len(runs), ARRAY):
            part = runs[first : first + ARRAY]
            for run in part:
                self.workspace.forget_failure(run)
            with self.executor.batch():
                submitted = [
                    self.executor.submit(ClusterRun(self.workspace.request(run), {})) for run in part
                ]
            for run, job in zip(part, submitted, strict=True):
                jobs[run.id] = run, job
                display.started(run, f"job {job.job_id}")
        cancelled_at = None
        while jobs:
            if self.stop_asked and cancelled_at is None:
                cancelled_at = time.monotonic()
                for _, job in jobs.values():
                    job.cancel(check=False)
            late = cancelled_at is not None and time.monotonic() - cancelled_at > CANCEL_SECONDS
            for name, (run, job) in list(jobs.items()):
                if not job.done() and not late and self.stop_asked < 2:
                    continue
                del jobs[name]
                if self.stop_asked and not self.workspace.state(run).final:
                    display.stopped(run)
                else:
                    display.ended_with(run, settle(self.workspace, run, _ended(job)))
            display.tick()
            if jobs:
                time.sleep(self.poll_seconds)

    def interrupt(self) -> None:
        """Cancel the jobs, whose runs save; a second call does not wait for them."""
        self.stop_asked += 1

    def close(self) -> None:
        """Nothing to do: jobs end by themselves."""


def _ended(job: Any) -> Ended:
    try:
        ended = Ended(**job.result())
    except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError) as error:
        return Ended(1, f"job {job.job_id} ({job.state}): {_first_line(error)}")
    # A job that was cancelled by somebody else is no result, but the summary must say so.
    return Ended(1, ended.reason or "stopped by a signal") if ended.status > 128 else ended


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
