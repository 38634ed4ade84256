"""Where what one machine found out, or compiled, is kept from one run to the next."""

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """``vit_gelu`` in the user's cache folder: ``$XDG_CACHE_HOME``, else ``~/.cache``.

    Raises:
        OSError: the user has no home, as in a container that was given a number for a user.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vit_gelu"
    except RuntimeError as error:
        raise OSError(f"no cache folder: {error}") from None


def cache_file(part: str, name: str) -> Path:
    """A file of the cache, or where it is to be made: for a while only, where the user's cache cannot be written.

    Args:
        part: a folder of the cache; it is there afterwards.
        name: of the file.

    Raises:
        OSError: there is no place to make it.
    """
    try:
        file = cache_folder() / part / name
        if file.is_file():
            return file
        file.parent.mkdir(parents=True, exist_ok=True)
        if os.access(file.parent, os.W_OK):
            return file
    except OSError:
        pass
    folder = _temporary_cache() / part
    folder.mkdir(exist_ok=True)
    return folder / name


def _temporary_cache() -> Path:
    """This user's alone: code is loaded from it."""
    user = os.getuid() if hasattr(os, "getuid") else ""
    folder = Path(tempfile.gettempdir(), f"vit_gelu-{user}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if hasattr(os, "getuid") and (found.st_uid != user or found.st_mode & 0o077):
        raise PermissionError(f"{folder}: is not this user's alone")
    return folder
