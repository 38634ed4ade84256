"""What stands in for Lightning's profiler while nobody profiles."""

from contextlib import nullcontext

from lightning.pytorch.profilers import PassThroughProfiler

_NOTHING = nullcontext()


class NoProfiler(PassThroughProfiler):
    """Measures nothing, as the class that it stands in for, at a fifth of the cost.

    Lightning enters a context of its profiler around each hook of each callback, about a hundred times a step.
    """

    def profile(self, action_name: str) -> nullcontext[None]:  # type: ignore[override]
        return _NOTHING
