"""Two processes that train together: one is lost, the other ends soon, and a restart gives the same bits."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gdyn_common.errors import TRY_AGAIN
from gdyn_common.storage import read_arrays

PROGRAM = Path(__file__).parent / "host.py"


@pytest.mark.timeout(900)  # against a hang; a busy machine takes minutes
@pytest.mark.parametrize("program", ["dd_two_player", "eigengame", "variance"])
def test_one_of_two_processes_is_lost(program, tmp_path, tally):
    if importlib.util.find_spec(program) is None:
        pytest.skip(f"{program} is not installed")
    # One device for each process. Only process 0 writes the cache; with it, process 1 comes much later.
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    environment = os.environ | {"XLA_FLAGS": quick, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, PROGRAM, program, tmp_path]
    with subprocess.Popen(command, env=environment, start_new_session=True) as pairs:
        try:
            assert pairs.wait() == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pairs.pid, signal.SIGKILL)

    def ended(start: str, index: int) -> tuple[int, str]:
        found = json.loads((tmp_path / f"{start}-{index}.json").read_text())
        return found["code"], found["said"]

    for lost in range(2):
        assert ended(f"lost/{lost}", lost)[0] == -signal.SIGKILL
        code, said = ended(f"lost/{lost}", 1 - lost)
        assert code == TRY_AGAIN, said[-3000:]
        assert said.splitlines()[-1].startswith(f"Process {1 - lost} of 2 "), said[-3000:]
        assert "Start all of them again" in said
        assert "Traceback" not in said
    ends = {}
    for folder in ("whole", "lost"):
        for index in range(2):
            code, said = ended(f"{folder}/all", index)
            assert code == 0, said[-3000:]
        ends[folder] = read_arrays(tmp_path / folder / "end.npz")
    for start in ("1", "all"):
        assert "from step 5" in ended(f"lost/{start}", 0)[1]
    assert ends["lost"].keys() == ends["whole"].keys()
    for name, array in ends["whole"].items():
        np.testing.assert_array_equal(ends["lost"][name], array, err_msg=name)
    tally("one of two processes lost", program, 2)
