"""The file survives kills, resumption and divergence; services never fail a run."""

import errno
import json
import logging
import math
import os
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import gdyn_common.logging as metrics_logging
from gdyn_common.logging import JsonLines, MultiTracker, read_jsonl


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def filled(path, steps=5, **fields):
    tracker = JsonLines(path)
    for step in range(steps):
        tracker.log(step, {"loss": 1 / (step + 1), **fields})
    return tracker


def test_each_line_is_one_flushed_json_object(path):
    tracker = filled(path)
    lines = path.read_text().splitlines()  # before close: flushed
    assert [json.loads(line) for line in lines] == list(read_jsonl(path))
    assert json.loads(lines[3]) == {"step": 3, "loss": 0.25}
    tracker.close()


def test_numpy_scalars_and_non_finite_values(path):
    tracker = JsonLines(path)
    tracker.log(
        np.int64(7),
        {"a": np.float32(0.5), "b": np.array(2), "c": math.nan, "d": -math.inf, "e": True, "f": "x"},
    )

    tracker.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads(path.read_text(), parse_constant=refuse)
    assert (line["c"], line["d"]) == ("nan", "-inf")  # as the records of runs spell them
    (record,) = read_jsonl(path)
    assert math.isnan(record.pop("c"))
    assert record == {"step": 7, "a": 0.5, "b": 2, "d": -math.inf, "e": True, "f": "x"}


def test_unfinished_last_line_is_skipped_and_cut_on_reopening(path):
    filled(path).close()
    with path.open("a") as file:
        file.write('{"step": 5, "lo')
    assert [record["step"] for record in read_jsonl(path)] == [0, 1, 2, 3, 4]
    tracker = JsonLines(path)
    tracker.log(5, {"loss": 0.0})
    tracker.close()
    assert [record["step"] for record in read_jsonl(path)] == [0, 1, 2, 3, 4, 5]


def test_damage_elsewhere_is_an_error(path):
    path.write_text('{"step": 0}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is no record with a step: 'nonsense'; "):
        list(read_jsonl(path))
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match=r"line 1 is no record"):
        list(read_jsonl(path))


def test_rewind_drops_what_will_be_logged_anew(path):
    tracker = filled(path, seed=0)
    tracker.close()
    tracker = filled(path, seed=1)
    tracker.rewind(2, seed=1)
    tracker.log(2, {"loss": 9.0, "seed": 1})
    tracker.rewind(4)
    assert [(record["step"], record["seed"]) for record in read_jsonl(path)] == [
        (0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (1, 1), (2, 1),
    ]  # fmt: skip
    assert not list(path.parent.glob("*.tmp"))
    tracker.close()


@pytest.mark.kill
def test_a_killed_writer_leaves_a_readable_file(path):
    code = (
        "import itertools, pathlib, sys; from gdyn_common.logging import JsonLines\n"
        "tracker = JsonLines(pathlib.Path(sys.argv[1]))\n"
        "for step in itertools.count(): tracker.log(step, {'loss': 1 / (step + 1), 'text': 'x' * 5000})"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(3):
        already, size = (len(list(read_jsonl(path))), path.stat().st_size) if path.exists() else (0, 0)
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], env=environment)
        while not path.exists() or path.stat().st_size < size + 100 * 5100:  # a line is shorter than 5100
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait(30)
        steps = [record["step"] for record in read_jsonl(path)]
        assert len(steps) >= already + 100
        assert steps[already:] == list(range(len(steps) - already))
        JsonLines(path).close()


def test_bad_metrics(path):
    tracker = JsonLines(path)
    with pytest.raises(ValueError, match=r"^metric 'w' has shape \(3,\); log one number per metric\.$"):
        tracker.log(0, {"w": np.zeros(3)})
    with pytest.raises(ValueError, match=r"^'step' is the name of the counter; call the metric otherwise\.$"):
        tracker.log(0, {"step": 1})
    with pytest.raises(TypeError):
        tracker.log(0, {"w": object()})
    tracker.close()
    assert path.read_text() == ""


class Recording:
    def __init__(self, fail_at=None):
        self.seen, self.fail_at, self.closed = [], fail_at, False

    def log(self, step, metrics):
        if step == self.fail_at:
            raise RuntimeError("service is gone")
        self.seen.append((step, dict(metrics)))

    def close(self):
        self.closed = True


def test_services_get_what_the_file_gets(path, monkeypatch):
    service = Recording()
    monkeypatch.setitem(metrics_logging.SERVICES, "wandb", lambda *arguments: service)
    tracker = MultiTracker(JsonLines(path), ["wandb"])
    tracker.log(0, {"loss": 1.0})
    tracker.close()
    assert service.seen == [(0, {"loss": 1.0})]
    assert service.closed
    assert list(read_jsonl(path)) == [{"step": 0, "loss": 1.0}]


def test_a_failing_service_is_dropped_with_one_notice(path, monkeypatch, caplog):
    service = Recording(fail_at=1)
    monkeypatch.setitem(metrics_logging.SERVICES, "wandb", lambda *arguments: service)
    tracker = MultiTracker(JsonLines(path), ["wandb"])
    with caplog.at_level(logging.WARNING):
        for step in range(4):
            tracker.log(step, {"loss": 1.0})
        tracker.close()
    assert caplog.messages == [f"wandb failed (service is gone); metrics go on to {path} only."]
    assert [step for step, _ in service.seen] == [0]
    assert len(list(read_jsonl(path))) == 4


@pytest.mark.parametrize(
    ("service", "module"),
    [("tensorboard", "tensorboard.compat.proto.event_pb2"), ("wandb", "wandb")],
)
def test_a_missing_extra_is_one_notice(path, monkeypatch, caplog, service, module):
    monkeypatch.setitem(sys.modules, module, None)
    with caplog.at_level(logging.WARNING):
        tracker = MultiTracker(JsonLines(path), [service])
        tracker.log(0, {"loss": 1.0})
        tracker.close()
    assert caplog.messages == [
        f"{service} is not installed (pip install 'gdyn-common[{service}]'); going on without."
    ]


def test_neptune_is_accepted_and_says_that_it_is_gone(path, caplog):
    with caplog.at_level(logging.WARNING):
        tracker = MultiTracker(JsonLines(path), ["neptune"])
        tracker.log(0, {"loss": 1.0})
        tracker.close()
    (message,) = caplog.messages
    assert message.startswith("neptune failed (its service ended on 2026-03-05")
    assert list(read_jsonl(path)) == [{"step": 0, "loss": 1.0}]


def test_unknown_service(path):
    record = JsonLines(path)
    with pytest.raises(
        ValueError, match=r"^Unknown logging service 'mlflow'\. Allowed: tensorboard, neptune, wandb\.$"
    ):
        MultiTracker(record, ["mlflow"])
    record.close()


def test_tensorboard_writes_events_that_can_be_read_back(path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = MultiTracker(JsonLines(path), ["tensorboard"])
    for step in range(3):
        tracker.log(step, {"loss": 2.0**-step, "note": "text is left out"})
    tracker.close()
    events = EventAccumulator(str(path.parent / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 1.0), (1, 0.5), (2, 0.25)]


@pytest.mark.filterwarnings("ignore")  # of the client's own dependencies
def test_wandb_offline_leaves_its_files_and_no_notice(path, monkeypatch, caplog):
    pytest.importorskip("wandb")
    monkeypatch.chdir(path.parent)
    with caplog.at_level(logging.WARNING, logger="gdyn_common.logging"):
        tracker = MultiTracker(JsonLines(path), ["wandb"])
        for step in range(3):
            tracker.log(step, {"loss": 2.0**-step})
        tracker.close()
    assert [record.message for record in caplog.records if record.name == "gdyn_common.logging"] == []
    assert list(path.parent.glob("wandb/offline-run-*"))


def test_rewind_of_the_end_writes_nothing_anew(path, monkeypatch):
    tracker = filled(path)
    inode = path.stat().st_ino
    tracker.rewind(9)
    tracker.rewind(3)
    assert path.stat().st_ino == inode
    tracker.log(3, {"loss": 0.0})
    tracker.close()
    assert [record["step"] for record in read_jsonl(path)] == [0, 1, 2, 3]


def test_a_line_is_written_whole_or_not_at_all(path, monkeypatch):
    tracker = filled(path)
    before = path.read_bytes()
    write = os.write
    calls = []

    def full(handle, data):
        calls.append(handle)
        if len(calls) == 1:
            return write(handle, bytes(data)[:7])  # the disk takes a part
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(OSError, match=r"metrics\.jsonl cannot be written: No space left"):
        tracker.log(5, {"loss": 0.0})
    monkeypatch.undo()
    assert path.read_bytes() == before
    tracker.log(5, {"loss": 0.0})
    tracker.close()
    assert len(list(read_jsonl(path))) == 6


def test_a_removed_file_is_noticed(path):
    tracker = filled(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="cannot be written"):
        tracker.log(5, {"loss": 0.0})
    path.write_text("")
    with pytest.raises(FileNotFoundError, match="it was replaced while it was in use"):
        tracker.log(5, {"loss": 0.0})
    tracker.close()


def test_an_unfinished_line_longer_than_a_block_is_cut(path, monkeypatch):
    monkeypatch.setattr(metrics_logging, "_BLOCK", 8)
    path.write_bytes(b"{}\n" + b"x" * 100)
    JsonLines(path).close()
    assert path.read_bytes() == b"{}\n"
    path.write_bytes(b"x" * 100)
    JsonLines(path).close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "line", [b'{"loss": 1}', b'{"step": "1"}', b"\xff", b"[" * 5000, b'{"step": ' + b"9" * 5000]
)
def test_any_damaged_line_is_one_message(path, line):
    path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is no record"):
        list(read_jsonl(path))
    tracker = JsonLines(path)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is no record"):
        tracker.rewind(0)
    tracker.close()


def test_reading_takes_the_memory_of_a_line(path):
    line = json.dumps({"step": 0, "note": "x" * 10_000}) + "\n"
    path.write_text(line * 2000)  # 20 MB
    tracemalloc.start()
    assert sum(1 for _ in read_jsonl(path)) == 2000
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("step", [1.5, math.nan, "4", None])
def test_a_step_that_is_no_whole_number_is_refused(tmp_path, step):
    tracker = JsonLines(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="whole number"):
        tracker.log(step, {"loss": 1.0})
    tracker.log(2.0, {"loss": 1.0})
    tracker.close()
    assert list(read_jsonl(tracker.path)) == [{"step": 2, "loss": 1.0}]
