"""Fetch one file over HTTP: continued where it stopped, checked before it counts."""

import hashlib
import http.client
import os
import re
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from vit_gelu.data.progress import progress

TIMEOUT_SECONDS = 30
CHUNK_BYTES = 2**18
TRIES_WITHOUT_PROGRESS = 3


class DownloadError(OSError):
    """A file could not be fetched; the message says why, in one line."""


def md5_of(path: Path) -> str:
    """MD5 of a file, the only checksum that CIFAR's authors publish: it guards against damage, not malice."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def download(url: str, target: Path, md5: str) -> None:
    """Fetch ``url`` into ``target``.

    What has arrived is kept in ``target.part``; a later call continues there. ``target`` appears only
    when it is whole and its checksum is right.

    Args:
        url: http, https or file.
        target: path of the file; its folder exists.
        md5: hexadecimal.

    Raises:
        DownloadError: not reachable, refused, kept breaking off, or not the file with that checksum.
        OSError: the disk is full or cannot be written.
    """
    part = target.with_name(target.name + ".part")
    continued = part.exists()
    _fetch(url, part, target.name)
    if md5_of(part) != md5 and continued:
        # What lay there may have been of another file: once more, from the start.
        part.unlink()
        _fetch(url, part, target.name)
    found = md5_of(part)
    if found != md5:
        part.unlink()
        raise DownloadError(f"it is not the expected file: its md5 is {found}, not {md5}")
    os.replace(part, target)


def _fetch(url: str, part: Path, name: str) -> None:
    """Fill ``part``, continuing after every break, until the end or until tries bring nothing new."""
    furthest, failures = -1, 0
    while True:
        problem = _fetch_once(url, part, name)
        if problem is None:
            return
        size = part.stat().st_size if part.exists() else 0
        failures = 0 if size > furthest else failures + 1
        furthest = max(furthest, size)
        if failures == TRIES_WITHOUT_PROGRESS:
            raise DownloadError(
                f"{problem}; the {size / 1e6:.1f} MB so far are kept, the next start continues"
            )


def _fetch_once(url: str, part: Path, name: str) -> str | None:
    """One connection. Returns None at the end of the file, else what broke it off."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "vit_gelu"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        error.close()
        if error.code == 416 and have:  # asked for what comes after the last byte
            return None
        raise DownloadError(f"the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(str(getattr(error, "reason", error)) or type(error).__name__) from error
    with response:
        total = int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        if response.status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if not match or int(match[1]) != have:
                part.unlink()
                return "the server sent another range than asked for"
            total = int(match[2])
        else:
            have = 0
        with open(part, "ab" if have else "wb") as file, progress(f"downloading {name}", total) as show:
            while True:
                try:
                    chunk = response.read(CHUNK_BYTES)
                except (OSError, http.client.HTTPException) as error:
                    return f"the connection broke: {error or type(error).__name__}"
                if not chunk:
                    break
                file.write(chunk)
                have += len(chunk)
                show(have)
    if total is not None and have < total:
        return f"the connection broke after {have / 1e6:.1f} of {total / 1e6:.1f} MB"
    return None
