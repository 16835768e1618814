"""Where we do otherwise than the original, why, and what changes."""

from __future__ import annotations

from gdyn_reproduce.registry import Deviation

DEVIATIONS = (
    Deviation(
        "D1",
        "pseudo-code of Appendix B (mu paper)",
        "does not run: fifteen errors of names, signatures, axes and initialisation",
        "`eigengame.reference` keeps its names and argument order, corrected",
        "none on the mathematics; it is the oracle of the tests",
    ),
    Deviation(
        "D2",
        "normalisation of directions",
        "the pseudo-code sums over the batch, the algorithms average",
        'average by default, `reduction="sum"` for the pseudo-code',
        "learning rates differ by the global batch size",
    ),
    Deviation(
        "D3",
        "players",
        "a function of one player, vmapped",
        "matrix products for all players; no (k, k, d) array",
        "same numbers to rounding, several times faster",
    ),
    Deviation(
        "D4",
        "learning rates of the image experiment",
        "chosen by the authors' search, not all printed",
        "the best multiple of c / lambda_1, inside its grid, per method and batch size on an unreported seed",
        "curves are comparable in order, not in absolute steps",
    ),
    Deviation(
        "D5",
        "bias experiment",
        "trajectories at batch size 1, 1000 trials",
        "directions averaged over all equal parts of one batch, 1000 trials at paper size",
        "measures the bias itself, without an optimiser around it",
    ),
    Deviation(
        "D6",
        "utility landscapes",
        "samples not specified in the text",
        "heavy-tailed samples: for Gaussian ones alpha's maximum provably does not move",
        "the shift of alpha depends on the distribution of the data; mu's is zero for all",
    ),
    Deviation(
        "D7",
        "data-parallel and activation experiments",
        "14e9 private embeddings; ResNet-200 on ImageNet",
        "synthetic covariance; a random convolutional network on generated images",
        "the qualitative claims are tested, the papers' numbers are not",
    ),
)
