"""Runs as tasks of a Ray cluster."""

import logging
from collections import deque
from typing import Any

import ray

from vit_gelu.ablation.cluster_run import ClusterRun
from vit_gelu.ablation.display import Display
from vit_gelu.ablation.local import ATTEMPTS, settle
from vit_gelu.ablation.one_run import Ended
from vit_gelu.ablation.plan import Run
from vit_gelu.ablation.workspace import Workspace
from vit_gelu.cli.errors import UsageError


def carry_out_there(run: ClusterRun) -> dict[str, Any]:
    """What a Ray worker executes."""
    return run()


class RayExecutor:
    """Spreads runs over the nodes of a Ray cluster; each run is a process of its own.

    Args:
        workspace: the ablation's folder, on a file system that all nodes share.
        address: ``auto`` (the cluster that this machine belongs to), ``local`` (one of its own), or ``HOST:PORT``.
        cpus: cores of each run; one where not given.
        devices_per_run: GPUs of each run.
        jobs_per_device: runs that share a GPU.
        accelerator: ``trainer.accelerator`` of the runs.

    Raises:
        UsageError: no cluster there, or none that could ever take a run.
    """

    def __init__(
        self,
        workspace: Workspace,
        address: str = "auto",
        cpus: int | None = None,
        devices_per_run: int = 1,
        jobs_per_device: int = 1,
        accelerator: str = "auto",
    ) -> None:
        if jobs_per_device > 1 and devices_per_run > 1:
            raise UsageError(
                f"--jobs-per-device {jobs_per_device}: not with --devices-per-run {devices_per_run}"
            )
        self.workspace = workspace
        self.broken = ""
        self.stop_asked = 0
        self.own = not ray.is_initialized()
        if self.own:
            try:
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    include_dashboard=False if address == "local" else None,
                )
            except (ConnectionError, ValueError) as error:
                reason = (str(error).strip().splitlines() or [""])[0]
                raise UsageError(
                    f"--ray.address {address}: no Ray cluster there ({reason[:200]}); start one with "
                    "ray start --head, or use --ray.address local"
                ) from None
        resources = ray.cluster_resources()
        on_gpu = accelerator != "cpu" and resources.get("GPU", 0) > 0
        self.cpus = cpus or 1
        self.gpus = devices_per_run / jobs_per_device if on_gpu else 0
        self.environment = {"OMP_NUM_THREADS": str(self.cpus)} if not on_gpu else {}
        if jobs_per_device > 1:
            self.environment["VIT_GELU_SHARED_DEVICE"] = "1"
        if self.places < 1:
            needs = f"{self.cpus} CPUs" + (f" and {self.gpus:g} GPUs" if on_gpu else "")
            self.close()
            raise UsageError(f"--executor ray: no node has {needs}, which a run takes")

    @property
    def places(self) -> int:
        """How many runs the cluster can take now; nodes may come and go."""
        total = 0
        for node in ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                fits = int(has.get("CPU", 0) // self.cpus)
                total += min(fits, int(has.get("GPU", 0) // self.gpus)) if self.gpus else fits
        return total

    def run(self, runs: list[Run], display: Display) -> None:
        """Carry out runs; see ``LocalExecutor.run``."""
        # A task whose worker process or node died is run again elsewhere.
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=ATTEMPTS - 1)(carry_out_there)
        todo, cancelled = deque(runs), False
        running: dict[Any, Run] = {}
        while running or (todo and not self.stop_asked):
            while todo and not self.stop_asked and len(running) < max(1, self.places):
                run = todo.popleft()
                self.workspace.forget_failure(run)
                reference = task.remote(ClusterRun(self.workspace.request(run), self.environment))
                running[reference] = run
                display.started(run, "Ray")
            if self.stop_asked and (not cancelled or self.stop_asked > 1):
                cancelled = True
                for reference in running:
                    ray.cancel(reference, force=self.stop_asked > 1)
            ready, _ = ray.wait(list(running), timeout=0.5)
            for reference in ready:
                run = running.pop(reference)
                ended = _ended(reference)
                if self.stop_asked and not self.workspace.state(run).final:
                    display.stopped(run)
                else:
                    display.ended_with(run, settle(self.workspace, run, ended))
            display.tick()

    def interrupt(self) -> None:
        """Cancel the tasks, whose runs save; a second call ends them at once."""
        self.stop_asked += 1

    def close(self) -> None:
        """Leave the cluster; one of our own ends."""
        if self.own:
            ray.shutdown()


def _ended(reference: Any) -> Ended:
    try:
        ended = Ended(**ray.get(reference))
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Ended(1, f"{type(error).__name__}: {lines[0]}"[:300])
    return Ended(1, ended.reason or "stopped by a signal") if ended.status > 128 else ended
