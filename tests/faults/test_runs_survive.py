"""Whatever stops a run, starting it again gives the numbers of an uninterrupted one, bit for bit."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from contents import contents, difference, litter
from injection import NEEDS_NOTHING, Writes, fail, kill, send, tear
from workloads import WORKLOADS, Attempt, Workload, attempt

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*"),
    pytest.mark.skipif(sys.platform != "linux", reason="counts writes through /proc and fork"),
    pytest.mark.timeout(3600),
]
each_workload = pytest.mark.parametrize(
    "workload", [pytest.param(w, id=str(w), marks=pytest.mark.xdist_group(w.package)) for w in WORKLOADS]
)


@dataclass
class Whole:
    """An uninterrupted run: exit code, what it left, and how many changes to files that took."""

    code: int
    contents: dict[str, Any]
    events: list[str]
    size: int

    def draw(self, random: Random, without: Collection[str] = ()) -> int:
        """Draw the number of an event: first its kind, so that the rare ones have their turn, then which."""
        kind = random.choice(sorted(set(self.events) - set(without)))
        return random.choice([number for number, name in enumerate(self.events, 1) if name == kind])


@functools.cache
def uninterrupted(workload: Workload) -> Whole:
    with tempfile.TemporaryDirectory() as scratch:
        folder, count = Path(scratch) / "out", Path(scratch) / "count"

        def counted(folder: Path) -> None:
            writes, leave = Writes(folder, kill, 0), os._exit

            def leave_count(code: int) -> None:
                count.write_text(json.dumps(writes.names))
                leave(code)

            os._exit = leave_count

        result = attempt(workload, folder, counted)
        assert result.code in (0, 1), result.err
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return Whole(result.code, contents(folder), json.loads(count.read_text()), size)


def assert_finished_as_if_nothing_had_happened(workload: Workload, folder: Path, last: Attempt) -> None:
    whole = uninterrupted(workload)
    assert last.code == whole.code, last.err
    assert difference(whole.contents, contents(folder)) == ""
    assert litter(folder) == []


def assert_one_line(result: Attempt, code: int = 2) -> str:
    assert result.code == code, f"exit code {result.code}\n{result.err}"
    assert "Traceback" not in result.err, result.err
    *_, line = result.err.strip().splitlines() or [""]
    return line


@each_workload
def test_a_power_cut_leaves_the_old_file_or_the_new(workload):
    events = uninterrupted(workload).events
    renames = [number for number, name in enumerate(events) if name == "os.rename"]
    around = {tuple(events[number - 1 : number + 3]) for number in renames}
    assert around == {("sync", "os.rename", "replaced", "sync")}  # content, and afterwards the folder


@each_workload
def test_killed_anywhere(workload, tmp_path, form, random, tally):
    whole = uninterrupted(workload)
    kills = number = starts = 0
    while kills < form.kills:
        folder = tmp_path / f"run{number}" / "out"
        number += 1
        for life in range(8):
            at = whole.draw(random) if life < 7 and kills < form.kills else 0
            act = random.choice([kill, tear(int(2 ** random.uniform(0, 16)))])
            prepare = functools.partial(Writes, act=act, at=at)
            # One start in twenty is a new interpreter, as a check of those that are forked.
            result = attempt(workload, folder, prepare, fresh=at if starts % 20 == 5 else None)
            starts += 1
            if result.code not in (-signal.SIGKILL, -signal.SIGXFSZ):
                break
            kills += 1
        assert_finished_as_if_nothing_had_happened(workload, folder, result)
        shutil.rmtree(folder.parent)
    tally("killed and resumed", workload.package, kills)


@each_workload
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_interrupted_anywhere(workload, number, tmp_path, form, random, tally):
    whole = uninterrupted(workload)
    for index in range(form.faults):
        folder = tmp_path / f"run{index}" / "out"
        at = whole.draw(random)
        result = attempt(workload, folder, functools.partial(Writes, act=send(number), at=at))
        if result.code != whole.code:  # a signal may come when all is done
            assert "resumes" in assert_one_line(result, 130)
            assert litter(folder) == []
        assert_finished_as_if_nothing_had_happened(workload, folder, attempt(workload, folder))
    tally("interrupted and resumed", workload.package, form.faults)


@each_workload
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_writes_refused_anywhere(workload, code, tmp_path, form, random, tally):
    whole = uninterrupted(workload)
    for index in range(form.faults):
        folder = tmp_path / f"run{index}" / "out"
        at, forever = whole.draw(random, without=NEEDS_NOTHING), random.random() < 0.5
        result = attempt(workload, folder, functools.partial(Writes, act=fail(code), at=at, forever=forever))
        if forever or result.code != whole.code:  # one refusal may be of no consequence
            line = assert_one_line(result)
            assert os.strerror(code) in line
            assert str(folder) in line
        assert litter(folder) == []
        assert_finished_as_if_nothing_had_happened(workload, folder, attempt(workload, folder))
    tally("refused writes", workload.package, form.faults)


@each_workload
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_small_disk(workload, tmp_path, form, random, tally):
    whole = uninterrupted(workload)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        for index in range(form.faults):
            folder = disk / "out"
            pages = random.randint(2, 2 + whole.size // 4096)
            subprocess.run(["mount", "-o", f"remount,size={4 * pages}k", str(disk)], check=True)
            result = attempt(workload, folder, scratch=tmp_path / f"run{index}")
            if result.code != whole.code:
                assert "No space left on device" in assert_one_line(result)
                assert litter(folder) == []
            subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
            last = attempt(workload, folder, scratch=tmp_path / f"run{index}")
            assert_finished_as_if_nothing_had_happened(workload, folder, last)
            shutil.rmtree(folder)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    tally("full disks", workload.package, form.faults)


@each_workload
def test_the_folder_is_removed_meanwhile(workload, tmp_path, form, random, tally):
    whole = uninterrupted(workload)
    for index in range(form.faults):
        folder = tmp_path / f"run{index}" / "out"
        at = random.randint(3, len(whole.events)) if index else len(whole.events)  # first at the very end

        def remove(name: str, target: object, folder: Path = folder) -> None:
            shutil.rmtree(folder, ignore_errors=True)

        result = attempt(workload, folder, functools.partial(Writes, act=remove, at=at))
        if result.code != whole.code:  # before anything is in it, removing it does no harm
            assert str(folder) in assert_one_line(result)
            result = attempt(workload, folder)
        assert_finished_as_if_nothing_had_happened(workload, folder, result)
    tally("removed folders", workload.package, form.faults)


@each_workload
def test_the_clock_runs_backwards(workload, tmp_path, tally):
    def backwards(folder: Path) -> None:
        started = time.time()
        time.time = lambda: started - 1e4 * (real() - started)

    real = time.time
    result = attempt(workload, tmp_path / "out", backwards)
    assert_finished_as_if_nothing_had_happened(workload, tmp_path / "out", result)
    tally("clocks set back", workload.package)


@each_workload
@pytest.mark.parametrize("more", [(), ("overwrite=true",)], ids=["the same", "overwriting"])
def test_a_second_process_keeps_out(workload, more, tmp_path, form, random, tally):
    whole = uninterrupted(workload)
    second = Workload(workload.package, (*workload.arguments, *more))
    for index in range(form.faults):
        folder = tmp_path / f"run{index}" / "out"
        refused = []

        def start_second(folder: Path = folder, refused: list[Attempt] = refused) -> None:
            refused.append(attempt(second, folder, scratch=folder.parent / "second"))

        # From the first checkpoint on: before, the folder may not be locked yet.
        at = random.randint(len(whole.events) // 4, len(whole.events) // 2)
        prepare = functools.partial(Writes, act=send(signal.SIGSTOP), at=at)
        last = attempt(workload, folder, prepare, stopped=start_second)
        (result,) = refused
        assert "in use by another process" in assert_one_line(result)
        assert_finished_as_if_nothing_had_happened(workload, folder, last)
    tally("second processes", workload.package, form.faults)
