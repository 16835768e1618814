import signal
import subprocess
import sys

import numpy as np
import pytest

from gdyn_common.errors import ends_with_the_others, require_count

LOST = """
from gdyn_common.errors import ends_with_the_others
with ends_with_the_others(1, 2):
    raise RuntimeError({!r})
"""


@pytest.mark.parametrize("value", [1, 3, np.int64(2), np.array(3)])
def test_whole_numbers_are_counts(value):
    require_count("k", value, most=3)


@pytest.mark.parametrize(
    "value", [0, 4, -1, 2.0, 2.5, float("nan"), "2", None, True, np.True_, [2], np.ones(1)]
)
def test_what_is_no_count_is_refused(value):
    with pytest.raises(ValueError, match=r"^k is .*; pass a whole number from 1 to 3\.$"):
        require_count("k", value, most=3)


@pytest.mark.parametrize(
    "message",
    [
        "INTERNAL: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:1",
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer",
        "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats)",
    ],
)
def test_a_process_ends_with_the_others_in_one_line(message):
    ended = subprocess.run([sys.executable, "-c", LOST.format(message)], capture_output=True, text=True)
    assert ended.returncode == 75
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"Process 1 of 2 lost another one and ends ({message}). Start all of them again")


ABORTED = """
import os, threading
from gdyn_common.errors import ends_with_the_others
with ends_with_the_others(1, 2):
    threading.Thread(target=os.abort).start()
    threading.Event().wait()
"""


def test_a_process_that_its_framework_aborts_ends_in_one_line():
    ended = subprocess.run([sys.executable, "-c", ABORTED], capture_output=True, text=True)
    assert ended.returncode == 75
    (line,) = ended.stderr.splitlines()
    assert line.startswith("Process 1 of 2 is ended by its framework, as when another one is lost. Start all")


@pytest.mark.parametrize("inside", ["    os.abort()", "    pass\nthreading.Thread(target=os.abort).start()"])
def test_an_abort_of_ones_own_is_left_alone(inside):
    program = ABORTED.partition("    threading")[0] + inside
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGABRT
    assert ended.stderr == ""


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="of another kind"), ends_with_the_others(0, 2):
        raise RuntimeError("of another kind")
