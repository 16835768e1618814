"""The map: every figure, claim and deviation of this package. Imports no framework."""

from __future__ import annotations

from dd_two_player.paper.claims import CLAIMS
from dd_two_player.paper.deviations import DEVIATIONS
from dd_two_player.paper.figures import FIGURES
from dd_two_player.paper.flow_claims import FLOW_CLAIMS
from gdyn_reproduce.registry import Paper

__all__ = ["PAPER"]

PAPER = Paper(
    package="dd_two_player",
    title="Discretization Drift in Two-Player Games",
    authors="Mihaela Rosca, Yan Wu, Benoit Dherin, David G. T. Barrett",
    venue="ICML 2021",
    arxiv="2105.13922",
    bibtex="""
@article{rosca2021discretization,
  title={Discretization Drift in Two-Player Games},
  author={Rosca, Mihaela and Wu, Yan and Dherin, Benoit and Barrett, David GT},
  journal={International Conference on Machine Learning},
  year={2021}
}
@article{rosca2023continuous,
  title={On a continuous time model of gradient descent dynamics and instability in deep learning},
  author={Rosca, Mihaela and Wu, Yan and Qin, Chongli and Dherin, Benoit},
  journal={arXiv preprint arXiv:2302.01952},
  year={2023}
}
""",
    figures=FIGURES,
    claims=(*CLAIMS, *FLOW_CLAIMS),
    deviations=DEVIATIONS,
    out_of_scope={
        "inception-tables": "need the Inception weights, CIFAR-10 and 300 000 steps per run; configurations "
        "of these runs are `train experiment=sgd_cifar_config` and its siblings",
    },
)
