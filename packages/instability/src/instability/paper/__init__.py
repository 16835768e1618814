"""The map of the paper: every figure, table, claim and deviation, one entry each.

Figure numbers are those of the NeurIPS 2022 version.
"""

from __future__ import annotations

from gdyn_reproduce.registry import Paper
from instability.paper.claims import CLAIMS
from instability.paper.deviations import DEVIATIONS
from instability.paper.figures import FIGURES

__all__ = ["PAPER"]

BIBTEX = """
@inproceedings{sun2022surprising,
  author    = {Sun, Yuxin and Lao, Dong and Sundaramoorthi, Ganesh and Yezzi, Anthony},
  title     = {Surprising Instabilities in Training Deep Networks and a Theoretical Analysis},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {35},
  pages     = {19567--19578},
  year      = {2022},
  url       = {https://arxiv.org/abs/2206.02001}
}
"""

PAPER = Paper(
    package="instability",
    title="Surprising Instabilities in Training Deep Networks and a Theoretical Analysis",
    authors="Yuxin Sun, Dong Lao, Ganesh Sundaramoorthi, Anthony Yezzi",
    venue="NeurIPS 2022",
    arxiv="2206.02001",
    bibtex=BIBTEX,
    figures=FIGURES,
    claims=CLAIMS,
    deviations=DEVIATIONS,
)
