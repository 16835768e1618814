import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from eigengame.core.solver import init
from eigengame.sharding import init_distributed, make_mesh

HERE = Path(__file__).parent
LAYOUT = 1e-12  # float64, 20 steps: only the order of sums differs
SINGLE = 1e-5  # the same in float32
TWO_PROCESSES = 1e-5


def child_environment(devices):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def report():
    done = subprocess.run(
        [sys.executable, HERE / "layouts.py", HERE / "golden" / "eigengame.npz"],
        env=child_environment(4),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_every_layout_gives_the_result_of_one_device(report):
    for algorithm, differences in report["float64"].items():
        for layout, difference in differences.items():
            assert difference < LAYOUT, (algorithm, layout)


def test_every_layout_with_adam(report):
    # Adam divides by a root of squared gradients and magnifies rounding where these are tiny
    assert max(report["adam"].values()) < 1e-10


def test_every_layout_in_single_precision(report):
    assert max(report["float32"].values()) < SINGLE


def test_no_device_holds_a_whole_vector(report):
    assert report["wide"]["part"] == [4, 2500]
    assert report["wide"]["span"] < 0.05  # 4 for a random span


def test_golden_two_by_two_copies(report):
    assert report["golden"]["reference"] < 1e-9


def test_copies_of_the_reference_equal_the_fused_step(report):
    assert report["reference"]["copies"] < LAYOUT


def test_initial_vectors_do_not_depend_on_the_layout(report):
    assert report["reference"]["init"] == 0


def test_layouts_that_cannot_be(report):
    batch, features, devices, both, groups, other, axes, word, scalar = report["rejected"]
    assert batch.startswith(
        "A batch of 6 rows cannot be split over data=4 devices; use a batch size divisible by 4"
    )
    assert "cannot be split over features=4" in features
    assert "needs 8 devices; 4 present" in devices
    assert "players=2 and features=2 cannot both exceed 1" in both
    assert "without axis_index_groups different players would be summed" in groups
    assert "pass the same mesh to init" in other
    assert all("has not the axes data, players, features" in message for message in (axes, word))
    assert "A last axis of 1 features cannot be split over features=2 devices" in scalar


def test_an_estimator_does_not_depend_on_a_mesh_that_does_not_divide_its_batches(report):
    """Batches were rounded up to a multiple of the devices: 258 rows for 256 on three."""
    assert report["estimator"] < LAYOUT


def test_a_leaf_of_one_number_per_sample_on_a_mesh(report):
    assert report["scalar"] < LAYOUT


def run_two_processes(folder, *late):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, HERE / "two_processes.py", f"127.0.0.1:{port}", str(index), folder, *late],
            env=child_environment(2),
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=240 if late else 120)
        assert process.returncode == 0, errors[-3000:]


@pytest.mark.slow  # a process is late by more than the 30 seconds of JAX
def test_a_process_that_is_late_at_the_first_sum_or_at_the_end_is_not_lost(tmp_path):
    run_two_processes(tmp_path, "late")


def test_two_processes_equal_one(tmp_path):
    run_two_processes(tmp_path)
    alone = subprocess.run(
        [sys.executable, HERE / "two_processes.py", "alone", "0", tmp_path],
        env=child_environment(1),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert alone.returncode == 0, alone.stderr[-3000:]
    together = np.load(tmp_path / "together.npy")
    np.testing.assert_allclose(together, np.load(tmp_path / "alone.npy"), atol=TWO_PROCESSES)


def test_a_pytree_split_by_features_equals_one_device(report):
    assert report["pytree"]["features 2"] < LAYOUT


def test_columns_that_the_mesh_does_not_divide_are_refused_before_anything_is_placed():
    mesh = SimpleNamespace(shape={"data": 1, "players": 1, "features": 4})
    for dimension in (18, {"a": 8, "b": 6}):
        with pytest.raises(ValueError, match="cannot be split over features=4 devices; pad it with zeros"):
            init(jax.random.key(0), 2, dimension, optax.sgd(0.1), mesh=mesh)


def test_axes_must_be_positive():
    with pytest.raises(ValueError, match="Mesh axes must be at least 1"):
        make_mesh(data=0)


def test_process_index_must_fit():
    with pytest.raises(ValueError, match=r"process_id 2 is outside 0\.\.1"):
        init_distributed("127.0.0.1:1", 2, 2)
