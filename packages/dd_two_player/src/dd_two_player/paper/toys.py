"""The commands ``toy``, ``principal-flow`` and ``dal``: one small run each, as CSV and a picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dd_two_player.drift import Coefficients, PlayerTerms, drift_coefficients
from dd_two_player.flows import discrete_path, integrate, modified_field, runge_kutta_map, step_map
from dd_two_player.paper import engine
from dd_two_player.paper.config import TrainConfig
from dd_two_player.paper.device import computing
from dd_two_player.paper.digits_network import descend, digits_network
from dd_two_player.paper.toy_config import DalConfig, PrincipalFlowConfig, ToyConfig
from dd_two_player.paper.unread import check_read
from dd_two_player.principal_flow import dal as dal_transformation
from dd_two_player.principal_flow import exact_hvp, quadratic_principal_flow
from dd_two_player.regularization import Regularization
from dd_two_player.toy_games import dirac_gan, linear_game
from gdyn_common.storage import atomic_write
from gdyn_reproduce import keys
from gdyn_reproduce.plotting import house_style, new_figure, save_figure
from gdyn_reproduce.runs import config_hash

__all__ = ["dal", "draw_vector_field", "principal_flow", "toy"]

CANCEL_ALL = PlayerTerms(self_norm=-1.0, other_dot_prod=-1.0)


def toy(config: ToyConfig) -> int:
    """Play a small game and write ``path.csv`` and ``figure.png``."""
    check_read(config)
    if config.game in ("mog16", "ring8"):
        return _mixture(config)
    if config.dry_run:
        print(json.dumps(dataclasses.asdict(config)))
        return 0
    folder = _folder(config, "toy")
    with computing(config.device, "float64"):
        game = dirac_gan() if config.game == "dirac" else linear_game((config.damping, config.damping))
        rates = (config.learning_rate, config.gen_learning_rate or config.learning_rate)
        start = (jnp.asarray(config.start[0]), jnp.asarray(config.start[1]))
        scheme = {"sim": "simultaneous", "alt": "alternating"}.get(config.scheme, "")
        curves = {}
        if scheme:
            added = None
            if config.correct != "none":
                recipe = Regularization(dd_coeffs_multiplier=Coefficients(CANCEL_ALL, CANCEL_ALL))
                drift = drift_coefficients(rates, (1, 1), scheme, config.first, config.correct)
                added = recipe.coefficients(drift)
            step = step_map(game, rates, scheme=scheme, first=config.first, coefficients=added)
            joint = drift_coefficients(rates, (1, 1), scheme, config.first, "joint")
            curves["modified flow"] = modified_field(game, joint, rates=rates)
        else:
            step = runge_kutta_map(game, rates)
        curves["flow"] = modified_field(game, rates=rates)
        path = discrete_path(step, start, config.num_steps)
        _check_end({config.scheme: path[-1]})  # first: no flow can be followed as far as that
        times = np.arange(config.num_steps + 1.0)
        paths = {name: integrate(field, start, times) for name, field in curves.items()}
        _write_csv(folder / "path.csv", {"step": times, "phi": path[:, 0], "theta": path[:, 1]})
        with house_style():
            figure, axes = new_figure(figsize=(5, 4.5))
            draw_vector_field(axes, curves["flow"], path)
            for name, curve in paths.items():
                axes.plot(*curve.T, "--", label=name)
            axes.plot(*path.T, ".-", markersize=3, linewidth=0.5, label=config.scheme)
            axes.set(xlabel="phi", ylabel="theta", title=config.game)
            axes.legend()
            save_figure(figure, folder / "figure")
    return _report({"end": path[-1].tolist(), "norm": float(np.linalg.norm(path[-1]))}, folder)


def draw_vector_field(axes: Any, field: Callable[[Any], Any], around: np.ndarray, points: int = 15) -> None:
    """Draw arrows of a field of two scalars over the range of a path."""
    low, high = np.nanmin(around, 0), np.nanmax(around, 0)
    grids = np.meshgrid(*(np.linspace(lo - 0.3, hi + 0.3, points) for lo, hi in zip(low, high, strict=True)))
    arrows = jax.vmap(lambda p, t: field((p, t)))(
        jnp.asarray(grids[0].ravel()), jnp.asarray(grids[1].ravel())
    )
    axes.quiver(grids[0].ravel(), grids[1].ravel(), *map(np.asarray, arrows), color="0.75", width=0.003)


def principal_flow(config: PrincipalFlowConfig) -> int:
    """Compare gradient descent with its continuous models on a quadratic."""
    if config.dry_run:
        print(json.dumps(dataclasses.asdict(config)))
        return 0
    folder = _folder(config, "principal-flow")
    values, start, rate = np.asarray(config.eigenvalues), np.asarray(config.start), config.learning_rate
    times = rate * np.arange(config.num_steps + 1.0)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused by name below
        curves = {
            "gradient descent": start * (1 - rate * values) ** np.arange(config.num_steps + 1)[:, None],
            "principal flow": quadratic_principal_flow(np.diag(values), rate, start, times).real,
            "IGR flow": start * np.exp(-np.outer(times, values + rate / 2 * values**2)),
            "gradient flow": start * np.exp(-np.outer(times, values)),
        }
    _check_end({name: curve[-1] for name, curve in curves.items()})
    columns = {f"{name} x{i}": curve[:, i] for name, curve in curves.items() for i in range(start.size)}
    _write_csv(folder / "path.csv", {"time": times, **columns})
    with house_style():
        figure, axes = new_figure()
        for name, curve in curves.items():
            axes.plot(times, curve[:, 0], "o-" if name == "gradient descent" else "-", label=name)
        axes.set(xlabel="time", ylabel="first coordinate")
        axes.legend()
        save_figure(figure, folder / "figure")
    return _report({name: curve[-1].tolist() for name, curve in curves.items()}, folder)


def dal(config: DalConfig) -> int:
    """Train the small network with a fixed rate and with DAL."""
    if config.dry_run:
        print(json.dumps(dataclasses.asdict(config)))
        return 0
    folder = _folder(config, "dal")
    runs = {}
    with computing(config.device, config.dtype):
        network = digits_network(config.num_examples, config.width)
        start = network.start(config.seed)
        for name, power in (("fixed", 0.0), ("DAL", config.power)):
            optimizer = dal_transformation(
                exact_hvp(network.loss), learning_rate=config.learning_rate, power=power, cap=config.cap
            )
            runs[name] = descend(network.loss, optimizer, config.num_steps)(start)
    steps = np.arange(config.num_steps)
    columns = {f"{name} {key}": values for name, run in runs.items() for key, values in run.items()}
    _write_csv(folder / "path.csv", {"step": steps, **columns})
    with house_style():
        figure, axes = new_figure()
        for name, run in runs.items():
            axes.semilogy(steps, run["loss"], label=name)
        axes.set(xlabel="step", ylabel="loss")
        axes.legend()
        save_figure(figure, folder / "figure")
    return _report({f"{name} final loss": float(run["loss"][-1]) for name, run in runs.items()}, folder)


def _mixture(config: ToyConfig) -> int:
    """Train a small GAN on a mixture, and with Runge-Kutta's method, which stays near the flow, beside it."""
    from dd_two_player.gans.checkpoints import restore_checkpoint
    from dd_two_player.gans.mixtures import mixture_scores
    from dd_two_player.paper.data import load_samples
    from dd_two_player.paper.monitoring import draw_points, draw_samples
    from dd_two_player.paper.training import LAST, run_folder, train

    runs = {scheme: _mixture_run(config, scheme) for scheme in dict.fromkeys((config.scheme, "rk4"))}
    for run in runs.values():
        train(run)
    if config.dry_run:
        return 0
    samples, folder = load_samples(config.game), _folder(config, "toy")
    ends: dict[str, float] = {}
    with house_style():
        figure, panels = new_figure(1, len(runs), figsize=(4.5 * len(runs), 4.5), squeeze=False)
        for axes, (scheme, run) in zip(panels[0], runs.items(), strict=True):
            with computing(run.device, run.dtype):
                trainer = engine.build(run, samples.shape)
                state = restore_checkpoint(run_folder(run) / LAST, trainer.start(run.seed))
                drawn = draw_samples(trainer.gan, state, 1000, 2)
            scores = mixture_scores(config.game, drawn)
            ends |= {f"{scheme} {name}": value for name, value in scores.items()}
            draw_points(axes, drawn, samples.scaled(slice(2000)))
            share, modes = scores["high_quality_share"], scores["modes_covered"]
            axes.set_title(f"{scheme}: {share:.0%} of the samples near {modes:.0f} modes")
        save_figure(figure, folder / "figure")
    return _report(ends, folder)


def _mixture_run(config: ToyConfig, scheme: str) -> TrainConfig:
    """Return the training with the options of the ``toy`` command and a scheme."""
    schemes = {"sim": "simultaneous", "alt": "alternating", "rk4": "runge_kutta"}
    terms = CANCEL_ALL._asdict() if config.correct != "none" and scheme == config.scheme else {}
    updates = {"scheme": schemes[scheme]}
    updates |= {"first": config.first} if scheme == "alt" else {}
    updates |= {"convention": config.correct} if terms else {}
    values = {
        "experiment": f"toy-{config.game}",
        "dataset": config.game,
        "classifier": "modes",
        "eval_every": config.num_steps,
        "optimizers": {
            "disc": {"lr": config.learning_rate},
            "gen": {"lr": config.gen_learning_rate or config.learning_rate},
        },
        "nets": {"gen": "PointMLP"},
        "updates": updates,
        "grad_regularizes": {"dd_coeffs_multiplier": {"disc": terms, "gen": terms}},
    }
    same = ("out", "overwrite", "dry_run", "num_steps", "device")
    run = {name: getattr(config, name) for name in same} | {"dtype": config.dtype or "float32"}
    made = keys.build(TrainConfig, values | run)
    assert isinstance(made, TrainConfig)
    return made


def _check_end(ends: dict[str, Any]) -> None:
    """Refuse paths that have no end, by name."""
    lost = [name for name, end in ends.items() if not np.isfinite(end).all()]
    if lost:
        raise FloatingPointError(
            f"{' and '.join(lost)} did not stay finite; lower learning_rate or num_steps."
        )


def _report(ends: dict[str, Any], folder: Path) -> int:
    """Print where each path ends."""
    _check_end(ends)
    print(json.dumps(ends | {"folder": str(folder)}))
    return 0


def _folder(config: Any, name: str) -> Path:
    values = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("out", "overwrite", "dry_run")}
    folder = Path(config.out) / "dd_two_player" / name / config_hash(values, "toy-1")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_csv(path: Path, columns: dict[str, np.ndarray]) -> None:
    rows = zip(*(np.asarray(c, float) for c in columns.values()), strict=True)
    lines = [",".join(columns), *(",".join(f"{v:.17g}" for v in row) for row in rows)]
    atomic_write(path, "\n".join(lines) + "\n")
