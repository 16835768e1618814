"""Configurations: defaults are the paper's, every impossible value is refused by name."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from gdyn_reproduce.cli import dispatch
from gdyn_reproduce.registry import Figure, resolve
from variance.paper import PAPER
from variance.paper.cli import COMMANDS
from variance.paper.compute import ComputeOptions

CONFIGS = {kind.__name__: kind for entry in (*PAPER.figures, *COMMANDS) for kind in [resolve(entry.config)]}


def test_defaults_are_the_papers() -> None:
    """Section 9: MNIST, random features, linear regression, number of clusters."""
    mnist, features, line, count = (
        CONFIGS["TrainingConfig"](),
        CONFIGS["RandomFeaturesConfig"](),
        CONFIGS["LinearRegressionConfig"](),
        CONFIGS["ClusterCountConfig"](),
    )
    assert (mnist.num_steps, mnist.batch_size, mnist.momentum, mnist.weight_decay) == (50_000, 128, 0.5, 5e-4)
    assert (mnist.mode, mnist.num_draws, mnist.clusters, mnist.cluster_iterations) == (
        "reference",
        50,
        128,
        10,
    )
    assert (features.hidden, features.num_steps, features.batch_size) == (1000, 5000, 10)
    assert (features.clusters, features.cluster_iterations, features.weight_decay) == (10, 3, 1e-4)
    assert (line.dim, line.num_examples, line.learning_rate, line.num_steps) == (1000, 500, 5e-5, 100_000)
    assert (line.switch_at, line.clusters, line.cluster_iterations) == (1000, 10, 10)
    assert count.counts == [2**k for k in range(9)]
    assert all(len(made.seeds) >= 3 for made in (mnist, features, line, count))


@pytest.mark.parametrize("figure", PAPER.figures, ids=lambda figure: figure.id)
def test_every_preset_builds(figure: Any) -> None:
    from gdyn_reproduce.runs import configure

    for preset in figure.presets:
        configure(figure, preset)


def test_train_runs_every_rate_and_seed_that_it_is_given() -> None:
    """The singular keys, which it would not read, do not exist."""
    names = {field.name for field in fields(CONFIGS["TrainConfig"])}
    assert {"learning_rates", "seeds"} <= names
    assert not {"learning_rate", "seed"} & names


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("TrainingConfig", {"learning_rates": [0.1, 0.0]}, r"learning_rates=\[0.1, 0.0\] must be positive"),
        ("TrainingConfig", {"learning_rates": []}, r"learning_rates=\[\] must be positive"),
        ("TrainingConfig", {"batch_size": 0}, "num_steps and batch_size must be at least 1"),
        ("TrainingConfig", {"measure_every": 0}, "measure_every=0 must be at least 1"),
        ("TrainingConfig", {"clusters": 0}, "clusters=0 must be at least 1"),
        ("TrainingConfig", {"mode": "fast"}, "mode=fast: exact, unbiased or reference"),
        ("TrainingConfig", {"num_draws": 2}, "num_draws=2: at least 3"),
        ("TrainingConfig", {"duplicates": [3]}, r"duplicates=\[3\]: empty or \[n, times\]"),
        ("TrainingConfig", {"first_snapshot": 20}, "first_measure=10 lies before first_snapshot=20"),
        ("RandomFeaturesConfig", {"ratios": [1.0]}, "at least two"),
        ("RandomFeaturesConfig", {"ratios": [1.0, -1.0]}, "must be positive"),
        ("RandomFeaturesConfig", {"clusters": 101}, "clusters=101 exceed the 100 examples"),
        ("RandomFeaturesConfig", {"duplicate_fractions": [0.0, 1.0]}, r"must lie in \[0, 1\)"),
        ("ClusterCountConfig", {"counts": [2, 4]}, r"counts=\[2, 4\] must start with 1"),
        ("LinearRegressionConfig", {"switch_at": 100_000}, "switch_at=100000 must lie inside num_steps"),
        ("LinearRegressionConfig", {"clusters": 501}, "clusters=501 exceed num_examples"),
        ("GalleryConfig", {"clusters": 1}, "clusters=1: a gallery needs at least 2"),
        ("GalleryConfig", {"num_steps": 0}, "num_steps and batch_size must be at least 1"),
        ("NoiseFloorConfig", {"draws": [3]}, r"draws=\[3\]: at least 4"),
        ("GridConfig", {"executor": "slurm"}, "executor=slurm: serial, joblib, submitit"),
        ("GridConfig", {"jobs": 0}, "jobs=0 must be at least 1"),
    ],
)
def test_impossible_values(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CONFIGS[kind](**options)


def test_plain_gradients_need_no_snapshot() -> None:
    CONFIGS["TrainingConfig"](first_snapshot=20, estimators=["SG-B", "SG-2B"])


@pytest.mark.parametrize("figure", PAPER.figures, ids=lambda figure: figure.id)
def test_every_figure_reads_device_and_dtype(figure: Figure, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(PAPER, (), ["run", figure.id, "preset=smoke", "device=cuda:7"]) == 2
    assert capsys.readouterr().err.count("device=cuda:7 is not present here; use device=cpu.") == 1
    assert dispatch(PAPER, (), ["run", figure.id, "preset=smoke", "dtype=float16"]) == 2
    assert "dtype=float16 is unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    "figure", ["F2", "F6", "F8", "F9", "clusters_2d", "gallery", "noise_floor", "ad_hoc"]
)
def test_figures_compute_in_double_precision(
    figure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is trained or measured in double precision has tensors of that type, and other numbers."""
    seen: set[torch.dtype] = set()
    moved, placed = ComputeOptions.tensor, ComputeOptions.network

    def tensor(self: ComputeOptions, values: torch.Tensor) -> torch.Tensor:
        seen.add(moved(self, values).dtype)
        return moved(self, values)

    def network(self: ComputeOptions, model: torch.nn.Module) -> torch.nn.Module:
        seen.update(p.dtype for p in placed(self, model).parameters())
        return model

    monkeypatch.setattr(ComputeOptions, "tensor", tensor)
    monkeypatch.setattr(ComputeOptions, "network", network)
    options = [f"out={tmp_path}", "preset=smoke", "dtype=float64", "seeds=[0]"]
    assert dispatch(PAPER, (), ["run", figure, *options]) == 0
    assert {kind for kind in seen if kind.is_floating_point} == {torch.float64}
