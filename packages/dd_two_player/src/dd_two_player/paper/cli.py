"""The command line: the house's commands and this paper's own."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dd_two_player.paper.published import EXPERIMENTS
from gdyn_reproduce import cli
from gdyn_reproduce.registry import Command

COMMANDS = (
    Command(
        "train",
        "Train a GAN: a small one on embedded digits, or a published configuration by experiment=NAME.",
        run="dd_two_player.paper.training:train",
        config="dd_two_player.paper.config:TrainConfig",
        groups={"experiment": EXPERIMENTS},
        default_groups={"experiment": "digits"},
        rewrite="dd_two_player.paper.cli:explain_stale_keys",
    ),
    Command(
        "eval",
        "Score a checkpoint; the newest one of experiment=NAME, or restore_path=FILE.",
        run="dd_two_player.paper.evaluate:evaluate",
        config="dd_two_player.paper.config:EvalConfig",
        options=("out",),
        rewrite="dd_two_player.paper.cli:explain_stale_keys",
    ),
    Command(
        "toy",
        "Play a small game: linear, dirac, mog16 or ring8; writes the path as CSV and a picture.",
        run="dd_two_player.paper.toys:toy",
        config="dd_two_player.paper.toy_config:ToyConfig",
        options=("out", "dry_run"),
        positional=("game",),
    ),
    Command(
        "principal-flow",
        "Compare gradient descent with its continuous models on a quadratic.",
        run="dd_two_player.paper.toys:principal_flow",
        config="dd_two_player.paper.toy_config:PrincipalFlowConfig",
        options=("out", "dry_run"),
    ),
    Command(
        "dal",
        "Train a small network with a fixed and with a drift adjusted learning rate.",
        run="dd_two_player.paper.toys:dal",
        config="dd_two_player.paper.toy_config:DalConfig",
        options=("out", "dry_run"),
    ),
)

SCHEDULE = re.compile(r"(updates|optimizers\.(disc|gen))\.(rate_schedule|options)=")
STALE = ("disc_reg_", "gen_reg_")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    cli.main("dd_two_player.paper:PAPER", COMMANDS, argv)


def explain_stale_keys(arguments: list[str]) -> list[str]:
    """Refuse keys of older configuration files with the line to use instead; let a schedule be given plainly.

    >>> explain_stale_keys(["updates.rate_schedule={500:4.0}"])  # the entries are no known keys
    ['+updates.rate_schedule={500:4.0}']

    >>> explain_stale_keys(["disc_reg_disc_norm=1"])
    Traceback (most recent call last):
    ValueError: disc_reg_disc_norm is a key of old files; use \
grad_regularizes.explicit_non_dd_coeffs.disc.self_norm.
    """
    for argument in arguments:
        key = argument.partition("=")[0].rpartition(".")[2]
        if key.startswith(STALE):
            player, _, rest = key.partition("_reg_")
            if rest.endswith("_norm"):
                term = "self_norm" if rest == f"{player}_norm" else "other_norm"
            else:
                term = "other_dot_prod"
            raise ValueError(
                f"{key} is a key of old files; use grad_regularizes.explicit_non_dd_coeffs.{player}.{term}."
            )
        if argument.startswith("--"):
            name = argument[2:].partition("=")[0]
            if name == "config":
                raise ValueError("--config is now experiment=NAME, for example experiment=sgd_cifar_config.")
    return [f"+{a}" if SCHEDULE.match(a) else a for a in arguments]
