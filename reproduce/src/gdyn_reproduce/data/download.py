"""Fetching published files, on explicit request only.

Written by hand on `urllib`, because what arrived before an interruption is kept and continued, which
pooch does not do, and because it is two libraries less.
"""

from __future__ import annotations

import contextlib
import hashlib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdyn_common.storage import FolderLock, naming

_BLOCK = 1 << 18
_TIMEOUT_S = 60


@dataclass(frozen=True)
class File:
    """A published file.

    Attributes:
        url: Where it is; https where the host has it. What is trusted is the hash, not the host.
        sha256: Of the file, in hexadecimal.
        size: In bytes, for people and progress bars.
    """

    url: str
    sha256: str
    size: int


def fetch(name: str, files: Mapping[str, File], folder: Path) -> None:
    """Download the files of a data set that are missing, each checked before it gets its name.

    Args:
        name: Of the data set, for messages.
        files: By path under `folder`.
        folder: Data folder; created.

    Raises:
        BlockingIOError: If another process is fetching into the folder.
        ConnectionError: If a file cannot be fetched or is not the published one; the message says
            how to put it in place by hand.
    """
    missing = {folder / path: file for path, file in files.items() if not (folder / path).exists()}
    with naming(folder, "written", "Pass another --root, or set GDYN_DATA_DIR"):
        folder.mkdir(parents=True, exist_ok=True)  # the lock's own advice is for run folders
    with FolderLock(folder):
        for target, file in missing.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                _fetch_one(target, file)
            except (OSError, ValueError) as error:
                raise ConnectionError(
                    f"{name}: could not fetch {target.name} ({' '.join(str(error).split())[:200]}). Start "
                    f"the command again to go on, or get {file.url} by other means and save it as {target}."
                ) from None


def _fetch_one(target: Path, file: File) -> None:
    """Download into ``<target>.part``, from where an earlier attempt ended, and rename it once checked."""
    part = target.with_name(f"{target.name}.part")
    digest = hashlib.sha256()
    with part.open("a+b") as out:
        out.seek(0)
        while block := out.read(_BLOCK):
            digest.update(block)
        have = out.tell()
        if digest.hexdigest() != file.sha256:
            with _open(file.url, have) as response, _progress(target.name, file.size) as advance:
                if response.status != 206:  # the host sends all of it again
                    out.truncate(0)
                    digest, have = hashlib.sha256(), 0
                advance(have)
                while block := response.read(_BLOCK):
                    have += len(block)
                    if have > 2 * file.size + _BLOCK:
                        break  # not the published file; its hash will say so
                    out.write(block)
                    digest.update(block)
                    advance(len(block))
    if have < file.size and digest.hexdigest() != file.sha256:
        raise ConnectionError(f"the connection ended after {have} of {file.size} bytes")
    if digest.hexdigest() != file.sha256:
        part.unlink()
        raise ValueError(f"what came has SHA-256 {digest.hexdigest()}, the published file {file.sha256}")
    part.replace(target)


def _open(url: str, start: int) -> Any:
    """Open a URL from a byte on; a host that has no such byte is asked for the whole file."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:
            return urllib.request.urlopen(url, timeout=_TIMEOUT_S)
        raise


@contextlib.contextmanager
def _progress(name: str, size: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error, silent when that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=size)
        yield lambda count: bar.advance(task, count)
