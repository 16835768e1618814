"""The map of the three papers: every experiment, claim and deviation, one entry each.

Section and figure numbers refer to the arXiv versions 2102.04152v2 (mu), 2010.00554v2 (alpha) and
2206.04993v1 (gamma).
"""

from __future__ import annotations

from eigengame.paper.claims import CLAIMS
from eigengame.paper.deviations import DEVIATIONS
from eigengame.paper.figures import FIGURES
from gdyn_reproduce.registry import Paper

__all__ = ["PAPER"]

PAPER = Paper(
    package="eigengame",
    title="EigenGame Unloaded: When playing games is better than optimizing",
    authors="Ian Gemp, Brian McWilliams, Claire Vernade, Thore Graepel",
    venue="ICLR 2022",
    arxiv="2102.04152",
    bibtex="""
@inproceedings{gemp2022unloaded,
  title     = {{EigenGame} Unloaded: When playing games is better than optimizing},
  author    = {Gemp, Ian and McWilliams, Brian and Vernade, Claire and Graepel, Thore},
  booktitle = {International Conference on Learning Representations},
  year      = {2022},
  note      = {arXiv:2102.04152},
}

@inproceedings{gemp2021eigengame,
  title     = {{EigenGame}: {PCA} as a {Nash} Equilibrium},
  author    = {Gemp, Ian and McWilliams, Brian and Vernade, Claire and Graepel, Thore},
  booktitle = {International Conference on Learning Representations},
  year      = {2021},
  note      = {arXiv:2010.00554},
}

@article{gemp2022generalized,
  title   = {The Generalized Eigenvalue Problem as a {Nash} Equilibrium},
  author  = {Gemp, Ian and Chen, Charlie and McWilliams, Brian},
  journal = {arXiv preprint arXiv:2206.04993},
  year    = {2022},
}
""",
    figures=FIGURES,
    claims=CLAIMS,
    deviations=DEVIATIONS,
    out_of_scope={
        "14e9 embeddings": "private data; bring your own array: fit DATA.npy k=256",
        "ResNet-200 activations on ImageNet": "data behind an account; pytrees take any activations",
        "Facebook pages graph": "not ours to redistribute; bring your own edges: embed EDGES",
        "gamma paper, CCA of activations with d near 1e6": "EigenGameCCA takes any two views",
    },
)
