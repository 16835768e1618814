"""The theorem on networks: descent of three GANs against their flows, with terms of the drift cancelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
import numpy as np

from dd_two_player.drift import Coefficients, Drift, PlayerTerms
from dd_two_player.flows import discrete_path, integrate, modified_field, step_map
from dd_two_player.game import Game
from dd_two_player.gans import losses
from dd_two_player.paper.config import require
from dd_two_player.paper.data import load_samples
from dd_two_player.paper.device import computing
from gdyn_common.seeding import generator
from gdyn_reproduce.plotting import label_curves, new_figure
from gdyn_reproduce.records import Result
from gdyn_reproduce.runs import Run, RunOptions

GAMES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "saturating": (losses.discriminator_goodfellow_loss, losses.generator_saturating_loss),
    "non-saturating": (losses.discriminator_goodfellow_loss, losses.generator_goodfellow_loss),
    "square": (losses.discriminator_square_loss_with_sigmoid, losses.generator_square_loss_with_sigmoid),
}
# what is added to the gradients: multiples of the self terms and of the interaction terms of the drift
ARMS = {
    "plain": (0.0, 0.0),
    "cancel": (-1.0, -1.0),
    "double": (1.0, 1.0),
    "cancel_interaction": (0.0, -1.0),
    "cancel_self": (-1.0, 0.0),
}
LABELS = {
    "plain": "descent against flow",
    "modified": "descent against modified flow",
    "cancel": "all drift cancelled",
    "double": "all drift doubled",
    "cancel_interaction": "interaction cancelled",
    "cancel_self": "self terms cancelled",
}
LATENTS = 4
TOLERANCE = 1e-8  # of the flows; the errors compared are above 1e-4


@dataclass
class NetworkTheoremConfig(RunOptions):
    """Tracking errors of GANs on digits, tanh networks of one hidden layer, full batch, double precision.

    Attributes:
        games: Pairs of losses: saturating (zero-sum), non-saturating, square (of the sigmoid).
        learning_rates: Of the discriminator; the time of the flow over each is a whole number of steps.
        ratio: The generator's rate over the discriminator's.
        horizon: Time of the discriminator's flow.
        width: Hidden units of both networks.
        num_examples: Images, and latents.
        seeds: Of weights and latents.
        device: Where to compute, in float64; by default where JAX does.
    """

    games: list[str] = field(default_factory=lambda: list(GAMES))
    learning_rates: list[float] = field(default_factory=lambda: [0.1, 0.05, 0.025])
    ratio: float = 0.5
    horizon: float = 4.0
    width: int = 16
    num_examples: int = 64
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    device: str | None = None

    def __post_init__(self) -> None:
        require(
            "games", list(self.games), set(self.games) <= set(GAMES) and bool(self.games), ", ".join(GAMES)
        )
        whole = all(
            h > 0 and abs(self.horizon / h - round(self.horizon / h)) < 1e-6 for h in self.learning_rates
        )
        require("learning_rates", list(self.learning_rates), whole, "parts of the horizon")
        require("horizon", self.horizon, 0 < self.horizon < float("inf"), "positive and finite")
        require("ratio", self.ratio, 0 < self.ratio < float("inf"), "positive and finite")


def compute(config: NetworkTheoremConfig, run: Run) -> Result:
    """Measure tracking errors ``(games, seeds, kinds, rates)``, and their orders per seed."""
    errors = np.zeros((len(config.games), len(config.seeds), len(LABELS), len(config.learning_rates)))
    for i, name in enumerate(config.games):
        for j, seed in enumerate(config.seeds):
            errors[i, j] = run.piece(f"{name}/seed={seed}", partial(_errors, config, name, seed))["errors"]
    with np.errstate(invalid="ignore"):
        logs = np.log(errors)
    rates = np.log(config.learning_rates)
    slopes = np.polyfit(rates, logs.reshape(-1, rates.size).T, 1)[0].reshape(errors.shape[:3])
    orders = slopes.mean(0)  # over games, seed by seed
    measured: dict[str, Any] = {f"order_{kind}": orders[:, k].tolist() for k, kind in enumerate(LABELS)}
    smallest = int(np.argmin(config.learning_rates))
    for k, kind in enumerate(LABELS):
        ratios = np.exp((logs[:, :, k, smallest] - logs[:, :, 0, smallest]).mean(0))
        measured[f"{kind}_error_ratio"] = ratios.tolist()
    arrays = {f"{name}/errors": errors[i] for i, name in enumerate(config.games)}
    return Result(measured, arrays | {"rates": np.asarray(config.learning_rates)})


def plot(result: Result) -> Any:
    """Draw geometric means over seeds of the errors against the rate, one panel per game."""
    rates = result.arrays["rates"]
    games = {k.partition("/")[0]: v for k, v in result.arrays.items() if k.endswith("/errors")}
    figure, axes = new_figure(
        1, len(games), figsize=(2.1 * len(games) + 2.2, 3.4), squeeze=False, sharey=True
    )
    for (name, errors), ax in zip(games.items(), axes[0], strict=True):
        for k, label in enumerate(LABELS.values()):
            ax.loglog(rates, np.exp(np.log(errors[:, k]).mean(0)), "o-", label=label)
        ax.set_title(f"{name.capitalize()} losses")
    axes[0, 0].set_ylabel("distance at the end")
    label_curves(axes[0, -1])
    figure.suptitle(
        "Descent of three GANs: distance from the flow it is compared with", x=0.01, ha="left", size=10
    )
    figure.supxlabel("learning rate of the discriminator", size=10)
    return figure


@cache  # one object, so that the compiled step serves all seeds: what differs is in the batch
def network_game(name: str) -> Game:
    """Return a GAN of tanh networks whose batch is ``(images, latents)``."""
    loss_disc, loss_gen = GAMES[name]

    def fake(disc: Any, gen: Any, latents: Any) -> Any:
        return _network(disc, jnp.tanh(_network(gen, latents)))

    return Game(
        lambda disc, gen, batch: loss_disc(_network(disc, batch[0]), fake(disc, gen, batch[1])),
        lambda disc, gen, batch: loss_gen(fake(disc, gen, batch[1])),
    )


def _network(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["w0"] + params["b0"]) @ params["w1"] + params["b1"]


def network_start(config: NetworkTheoremConfig, seed: int) -> tuple[Any, Any]:
    """Draw ``(params, batch)`` of a seed."""
    stream = generator(seed, "network-theorem")
    images = load_samples("digits").scaled(slice(config.num_examples)).reshape(config.num_examples, -1)

    def weights(inputs: int, outputs: int) -> dict[str, Any]:
        sizes = (inputs, config.width, outputs)
        pairs = list(pairwise(sizes))
        drawn = {f"w{i}": stream.standard_normal(shape) / shape[0] ** 0.5 for i, shape in enumerate(pairs)}
        return drawn | {f"b{i}": np.zeros(shape[1]) for i, shape in enumerate(pairs)}

    params = (weights(images.shape[1], 1), weights(LATENTS, images.shape[1]))
    latents = stream.standard_normal((config.num_examples, LATENTS))
    return params, (images.astype(float), latents)


def _errors(config: NetworkTheoremConfig, name: str, seed: int) -> dict[str, np.ndarray]:
    """Return distances at the end ``(kinds, rates)``."""
    with computing(config.device, "float64"):
        game = network_game(name)
        start, batch = network_start(config, seed)

        def flow(rates: tuple[float, float], added: Coefficients, time: float) -> np.ndarray:
            field = modified_field(game, added, rates=rates, batch=batch)
            path: np.ndarray = integrate(field, start, [time], rtol=TOLERANCE, atol=TOLERANCE)
            return path[-1]  # type: ignore[no-any-return]

        plain = flow((1.0, config.ratio), _terms(Drift.of((1.0, 1.0)), 0.0, 0.0), config.horizon)
        errors = np.zeros((len(LABELS), len(config.learning_rates)))
        for k, h in enumerate(config.learning_rates):
            rates, steps = (h, config.ratio * h), round(config.horizon / h)
            drift = Drift.of(rates)
            ends = {
                arm: discrete_path(
                    step_map(game, rates, coefficients=_terms(drift, *factors), batch=batch), start, steps
                )[-1]
                for arm, factors in ARMS.items()
            }
            against = {kind: (ends.get(kind), plain) for kind in LABELS}
            against["modified"] = (ends["plain"], flow(rates, _terms(drift, 1.0, 1.0), float(steps)))
            errors[:, k] = [np.linalg.norm(end - target) for end, target in against.values()]
    return {"errors": errors}


def _terms(drift: Drift, own: float, interaction: float) -> Coefficients:
    """Return multiples of a drift; as arrays, so that a zero is no other program."""
    disc, gen = (
        PlayerTerms(jnp.asarray(own * t.self_norm), 0.0, jnp.asarray(interaction * t.other_dot_prod))
        for t in drift.coefficients
    )
    return Coefficients(disc, gen)
