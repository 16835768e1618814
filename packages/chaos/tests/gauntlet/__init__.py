"""Models, losses and batches that people bring; importing this fills the table of cases."""

from gauntlet import architectures, losses, modes, modules, parameters
from gauntlet.batches import LanguageModel
from gauntlet.case import CASES, Case, classes, draw, mlp

__all__ = [
    "CASES",
    "Case",
    "LanguageModel",
    "architectures",
    "classes",
    "draw",
    "losses",
    "mlp",
    "modes",
    "modules",
    "parameters",
]
