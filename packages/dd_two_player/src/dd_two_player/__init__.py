"""Discretization drift in two-player games: drift terms, modified flows, GANs, principal flow."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    # drift and recipes
    "Coefficients": "drift",
    "PlayerTerms": "drift",
    "drift_coefficients": "drift",
    "Regularization": "regularization",
    "ESTIMATORS": "regularizers",
    "Estimator": "regularizers",
    # games and flows
    "Game": "game",
    "discrete_path": "flows",
    "integrate": "flows",
    "jacobian": "flows",
    "modified_field": "flows",
    "step_map": "flows",
    "dirac_gan": "toy_games",
    "linear_game": "toy_games",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that listing figures needs no framework."""
    if name in _HOME:
        return getattr(import_module(f"dd_two_player.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
