"""Configurations of the commands ``toy``, ``principal-flow`` and ``dal``."""

from __future__ import annotations

from dataclasses import dataclass, field

from dd_two_player.paper.config import DTYPES, choice, require
from gdyn_reproduce.runs import RunOptions

__all__ = ["DalConfig", "PrincipalFlowConfig", "ToyConfig"]


@dataclass
class ToyConfig(RunOptions):
    """A small game and how it is played.

    Attributes:
        game: linear, dirac, mog16 or ring8 (the mixtures are small GANs, with rk4 beside another scheme).
        scheme: sim, alt or rk4.
        first: Who moves first when alternating.
        learning_rate: Of both players.
        gen_learning_rate: Of the generator, if another one.
        num_steps: Updates; 0 takes 200, and 2000 for the mixtures.
        correct: Cancel the drift's interaction and self terms in this convention: none, paper or joint.
        damping: Of the linear game.
        start: Start of both scalars.
        device: Where to compute; by default where JAX does.
        dtype: float32 or float64 for the mixtures; the games of two scalars are played in float64.
    """

    game: str = "dirac"
    scheme: str = "sim"
    first: str = "disc"
    learning_rate: float = 0.1
    gen_learning_rate: float | None = None
    num_steps: int = 0
    correct: str = "none"
    damping: float = 0.09
    start: list[float] = field(default_factory=lambda: [1.0, 1.0])
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        choice("game", self.game, ("linear", "dirac", "mog16", "ring8"))
        choice("scheme", self.scheme, ("sim", "alt", "rk4"))
        choice("first", self.first, ("disc", "gen"))
        choice("correct", self.correct, ("none", "paper", "joint"))
        require("start", self.start, len(self.start) == 2, "two numbers")
        require("num_steps", self.num_steps, self.num_steps >= 0, "integers of at least 0")
        mixture = self.game in ("mog16", "ring8")
        self.num_steps = self.num_steps or (2000 if mixture else 200)
        choice("dtype", self.dtype or "float64", DTYPES)
        if self.dtype == "float32" and not mixture:
            raise ValueError(f"dtype is float32, and {self.game} is played in float64; leave out dtype.")
        for name in ("learning_rate", "gen_learning_rate"):
            value = getattr(self, name)
            good = value is None or 0 < value < float("inf")
            require(name, value, good, "positive and finite")
        if self.scheme == "rk4" and self.correct != "none":
            raise ValueError(
                "correct cancels the drift of gradient descent; scheme=rk4 has none of that form."
            )


@dataclass
class PrincipalFlowConfig(RunOptions):
    """Gradient descent and its continuous models on ``E = sum l_i x_i^2 / 2``.

    Attributes:
        eigenvalues: ``l_i``.
        start: ``x`` at time 0.
        learning_rate: Of gradient descent.
    """

    eigenvalues: list[float] = field(default_factory=lambda: [2.0, 0.02])
    start: list[float] = field(default_factory=lambda: [-0.35, -0.2])
    learning_rate: float = 0.9
    num_steps: int = 10

    def __post_init__(self) -> None:
        good = len(self.start) == len(self.eigenvalues) >= 1
        require("start", self.start, good, f"{len(self.eigenvalues)} numbers, one per eigenvalue")
        require("num_steps", self.num_steps, self.num_steps >= 1, "integers of at least 1")
        require(
            "learning_rate", self.learning_rate, 0 < self.learning_rate < float("inf"), "positive and finite"
        )


@dataclass
class DalConfig(RunOptions):
    """A two-layer network on embedded digits, full batch, with fixed and drift adjusted rates.

    Attributes:
        learning_rate: The fixed rate.
        power: p of DAL-p.
        cap: Largest rate.
        width: Hidden units.
        num_examples: Training examples.
        seed: Of the weights.
        device: Where to compute; by default where JAX does.
        dtype: float32 or float64.
    """

    learning_rate: float = 1.0
    power: float = 1.0
    cap: float = 5.0
    num_steps: int = 200
    width: int = 32
    num_examples: int = 256
    seed: int = 0
    device: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        choice("dtype", self.dtype, DTYPES)
        for name in ("learning_rate", "cap"):
            require(name, getattr(self, name), 0 < getattr(self, name) < float("inf"), "positive and finite")
        for name in ("num_steps", "width", "num_examples"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "integers of at least 1")
        require("power", self.power, self.power >= 0, "0 or more")
