"""A run as a job of a cluster: a call that can be sent to another machine with the same folders."""

import os
from pathlib import Path
from typing import Any

from vit_gelu.ablation.one_run import Child, carry_out

# What tells Lightning that a scheduler has started all processes of the run; here a run starts its own.
NOT_INHERITED = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")


class ClusterRun:
    """Carries out a run as a process of its own on the machine where it is called.

    Args:
        request: from ``Workspace.request``.
        environment: variables added there.
    """

    def __init__(self, request: dict[str, Any], environment: dict[str, str]) -> None:
        self.request, self.environment = request, environment
        self.child: Child | None = None

    def __call__(self) -> dict[str, Any]:
        """Train; the fields of an ``Ended``."""
        inherited = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED}
        child = Child(Path(self.request["log"]), inherited | self.environment, self.request["working_folder"])
        self.child = child
        try:
            return carry_out(self.request, child.train).as_plain()
        except KeyboardInterrupt:
            child.stop()
            child.wait()
            raise

    def checkpoint(self) -> Any:
        """Called by submitit before time is up or another job takes the place: save, and be queued again."""
        from submitit.helpers import DelayedSubmission

        if self.child is not None:
            self.child.stop()
            self.child.wait()
        return DelayedSubmission(ClusterRun(self.request, self.environment))
