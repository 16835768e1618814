"""Two processes that train together: one is lost, the other ends soon, and a restart gives the same bits."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gdyn_common.errors import TRY_AGAIN
from gdyn_common.storage import read_arrays

PROGRAM = Path(__file__).parent / "host.py"
END = {"dd_two_player": "checkpoint.npz", "eigengame": "checkpoint.npz", "variance": "end.npz"}
PATIENCE = 600  # seconds; a busy machine takes minutes to start two processes


_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nobody_stays():
    yield
    while _started:
        with _started.pop() as process:
            process.kill()


def start(program: str, folder: Path) -> list[subprocess.Popen[str]]:
    folder.mkdir(exist_ok=True)
    for old in folder.glob("step-*"):
        old.unlink()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    pair = [
        subprocess.Popen(
            [sys.executable, PROGRAM, program, coordinator, str(index), folder],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for index in range(2)
    ]
    _started.extend(pair)
    return pair


def finish(program: str, folder: Path) -> dict[str, np.ndarray]:
    for process in start(program, folder):
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors[-3000:]
    return read_arrays(folder / END[program])


def wait_for_step(process: subprocess.Popen[str], path: Path, step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not (path.is_file() and (text := path.read_text()) and int(text) >= step):
        assert process.poll() is None, process.stderr and process.stderr.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("program", END)
def test_one_of_two_processes_is_lost(program, tmp_path, tally):
    whole = finish(program, tmp_path / "whole")
    for lost in range(2):
        folder = tmp_path / f"lost-{lost}"
        processes = start(program, folder)
        wait_for_step(processes[lost], folder / f"step-{lost}", 7)
        processes[lost].send_signal(signal.SIGKILL)
        _, errors = processes[1 - lost].communicate(timeout=PATIENCE)  # raises where it hangs
        processes[lost].communicate()
        assert processes[1 - lost].returncode == TRY_AGAIN, errors[-3000:]
        assert "lost another one and ends" in errors, errors[-3000:]
        assert "Traceback" not in errors
        again = finish(program, folder)
        assert again.keys() == whole.keys()
        for name, array in whole.items():
            np.testing.assert_array_equal(again[name], array, err_msg=name)
        tally("one of two processes lost", program)
