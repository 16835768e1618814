"""Command line: see ``eigengame.paper.cli``."""

from eigengame.paper.cli import main

__all__ = ["main"]
