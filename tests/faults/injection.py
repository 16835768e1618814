"""Faults at chosen writes: a child process dies, is interrupted, or finds the disk full there.

``python injection.py FOLDER AT PACKAGE ...`` is ``python -m PACKAGE ...``, killed at a change of the folder.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_EVENTS = ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir")


Act = Callable[[str, object], None]


class Writes:
    """Counts everything that a process changes below a folder, and acts at the chosen event.

    Opening for writing, renaming, removing and making folders are seen before they happen; a file's
    content before it is written, halfway and before it is synchronised; a replacement also after it.

    Args:
        folder: Changes elsewhere do not count.
        act: Called with the name of the event whose number is `at`, and its path or descriptor.
        at: Counts from 1; 0 never acts.
        forever: Act at every event from there on.
    """

    def __init__(self, folder: Path, act: Act, at: int, forever: bool = False) -> None:
        self.count, self.at, self._act, self._forever = 0, at, act, forever
        self.names: list[str] = []
        self._folder = os.fsencode(folder)
        self._busy = False
        sys.addaudithook(self._audit)
        self._wrap("fsync", before="sync")
        self._wrap("replace", after="replaced")
        self._write = os.write
        os.write = self._halves

    def _event(self, name: str, target: object) -> None:
        self.count += 1
        self.names.append(name)
        if self.count == self.at or (self._forever and 0 < self.at < self.count):
            self._busy = True
            try:
                self._act(name, target)
            finally:
                self._busy = False

    def _is_inside(self, path: object) -> bool:
        if isinstance(path, int):
            try:
                path = Path(f"/proc/self/fd/{path}").readlink()
            except OSError:
                return False
        return isinstance(path, str | bytes | os.PathLike) and os.fsencode(path).startswith(self._folder)

    def _audit(self, event: str, arguments: tuple) -> None:
        if self._busy or event not in _EVENTS or not self._is_inside(arguments[0]):
            return
        reads = not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR) if event == "open" else False
        if reads or (event == "open" and isinstance(arguments[0], int)):  # a descriptor is open already
            return
        self._event(event, arguments[0])

    def _wrap(self, name: str, before: str = "", after: str = "") -> None:
        function = getattr(os, name)

        def wrapped(target, *arguments, **options):
            counts = not self._busy and self._is_inside(target)
            if counts and before:
                self._event(before, target)
            result = function(target, *arguments, **options)
            if counts and after:
                self._event(after, target)
            return result

        setattr(os, name, wrapped)

    def _halves(self, handle: int, data: bytes) -> int:
        if self._busy or not self._is_inside(handle):
            return self._write(handle, data)
        self._event("write", handle)
        half = self._write(handle, bytes(data)[: (len(data) + 1) // 2])
        self._event("half a line", handle)
        return half


def kill(name: str, target: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def tear(size: int) -> Act:
    """Die, as if killed, in the next file that grows beyond a size, with so much of it written."""

    def limit(name: str, target: object) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return limit


def send(number: int) -> Act:
    return lambda name, target: os.kill(os.getpid(), number)


NEEDS_NOTHING = ("os.remove", "os.rmdir", "replaced", "half a line")
"""Events that are over, or need no space."""


def fail(code: int) -> Act:
    def refuse(name: str, target: object) -> None:
        if name not in NEEDS_NOTHING:
            # As the system does: an error names a path, but not the file behind a descriptor.
            raise OSError(code, os.strerror(code), *([] if isinstance(target, int) else [target]))

    return refuse


if __name__ == "__main__":
    folder, at, *sys.argv = sys.argv[1:]
    with contextlib.suppress(ImportError):  # as `workloads.often_saving` does in those that are forked
        importlib.import_module(f"{sys.argv[0]}.paper.training").CHECKPOINT_EVERY_S = -1.0
    Writes(Path(folder), kill, int(at))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
