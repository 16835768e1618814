"""The map of the paper: every figure, claim and deviation, one entry each.

Figure numbers are those of the NeurIPS 2022 version as the published experiment table uses them.
"""

from __future__ import annotations

from chaos.paper.claims import CLAIMS
from chaos.paper.deviations import DEVIATIONS
from chaos.paper.figures import FIGURES
from gdyn_reproduce.registry import Paper

__all__ = ["PAPER"]

PAPER = Paper(
    package="chaos",
    title="Chaotic Dynamics are Intrinsic to Neural Network Training with SGD",
    authors="Luis Herrmann, Maximilian Granz, Tim Landgraf",
    venue="NeurIPS 2022",
    arxiv="",
    bibtex="""
@inproceedings{herrmann2022chaotic,
  title     = {Chaotic Dynamics are Intrinsic to Neural Network Training with {SGD}},
  author    = {Herrmann, Luis and Granz, Maximilian and Landgraf, Tim},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {35},
  pages     = {5219--5229},
  year      = {2022},
  url       = {https://papers.neurips.cc/paper_files/paper/2022/hash/222a2a46018a1e7b55ba48ba11932d04-Abstract-Conference.html}
}
""",
    figures=FIGURES,
    claims=CLAIMS,
    deviations=DEVIATIONS,
)
