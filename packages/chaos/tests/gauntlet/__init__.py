"""Models, losses and batches that people bring; importing this fills the table of cases."""

from gauntlet import architectures, losses, modes, modules, parameters
from gauntlet.batches import LanguageModel
from gauntlet.case import CASES, Case, Net, classes, draw, mlp

__all__ = [
    "CASES",
    "Case",
    "LanguageModel",
    "Net",
    "architectures",
    "classes",
    "draw",
    "losses",
    "mlp",
    "modes",
    "modules",
    "parameters",
]
