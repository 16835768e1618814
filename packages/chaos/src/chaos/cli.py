"""Command line: see ``chaos.paper.cli``."""

from chaos.paper.cli import main, train

__all__ = ["main", "train"]
