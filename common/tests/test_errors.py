import subprocess
import sys

import pytest

from gdyn_common.errors import ends_with_the_others

LOST = """
from gdyn_common.errors import ends_with_the_others
with ends_with_the_others(1, 2):
    raise RuntimeError({!r})
"""


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
    assert line.startswith("Process 1 of 2 lost another one and ends. Start all of them again")


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="of another kind"), ends_with_the_others(0, 2):
        raise RuntimeError("of another kind")
