"""How a command ends: mistakes of the user in a few lines and exit code 2, everything else with its traceback."""

import os
import signal
import sys
from collections.abc import Callable

USAGE = 2
FAILED = 1
INTERRUPTED = 128 + signal.SIGINT


class UsageError(ValueError):
    """A mistake in what was asked for; its text is all that the user sees."""


def lines_of(error: Exception) -> list[str]:
    """What an error says, at least one line; the system's own begins with the file that it is about.

    >>> lines_of(PermissionError(13, "Permission denied", "runs"))
    ['runs: Permission denied']
    """
    text = str(error)
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str) and "[Errno" in text:
        text = f"{error.filename}: {error.strerror}"
    return text.strip().splitlines() or [type(error).__name__]


def guarded(program: str, run: Callable[[], int]) -> int:
    """Call ``run`` and turn mistakes of the user into a short message on standard error.

    ``ValueError`` and ``OSError`` are the user's: wrong options, files that are missing or broken; so is memory that
    is not enough. With ``VIT_GELU_TRACEBACK=1`` in the environment they keep their traceback, for bug reports. So does
    Ctrl-C, which is said in a line otherwise.

    Args:
        program: what stands before the message, such as ``vit-gelu train``.
        run: returns the exit status.

    Returns:
        The exit status.
    """
    try:
        return run()
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        if os.environ.get("VIT_GELU_TRACEBACK"):
            raise
        print(f"{program}: stopped by SIGINT", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        if os.environ.get("VIT_GELU_TRACEBACK"):
            raise
        lines = lines_of(error)
        print(f"{program}: error: {lines[0]}", *lines[1:5], sep="\n", file=sys.stderr)
        return USAGE
    except (RuntimeError, MemoryError) as error:
        from vit_gelu.cli.missing_memory import missing_memory

        words = missing_memory(error)
        if words is None or os.environ.get("VIT_GELU_TRACEBACK"):
            raise
        print(f"{program}: error: {words}; a smaller batch needs less", file=sys.stderr)
        return USAGE
