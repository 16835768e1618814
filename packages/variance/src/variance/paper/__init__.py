"""The map of the paper: every figure, study, claim and deviation, one entry each.

F1 to F10 number the claims of the paper in the order of its experiments.
"""

from __future__ import annotations

from gdyn_reproduce.registry import Paper
from variance.paper.claims import CLAIMS
from variance.paper.deviations import DEVIATIONS
from variance.paper.figures import FIGURES
from variance.paper.study_claims import STUDY_CLAIMS

PAPER = Paper(
    package="variance",
    title="A Study of Gradient Variance in Deep Learning",
    authors="Fartash Faghri, David Duvenaud, David J. Fleet, Jimmy Ba",
    venue="arXiv, 2020",
    arxiv="2007.04532",
    bibtex="""
@misc{faghri2020study,
  title         = {A Study of Gradient Variance in Deep Learning},
  author        = {Fartash Faghri and David Duvenaud and David J. Fleet and Jimmy Ba},
  year          = {2020},
  eprint        = {2007.04532},
  archivePrefix = {arXiv},
  primaryClass  = {cs.LG}
}
""",
    figures=FIGURES,
    claims=CLAIMS + STUDY_CLAIMS,
    deviations=DEVIATIONS,
)
