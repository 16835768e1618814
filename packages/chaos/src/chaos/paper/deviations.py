"""Where we do otherwise than the original, why, and what changes."""

from __future__ import annotations

from gdyn_reproduce.registry import Deviation

DEVIATIONS = (
    Deviation(
        "D1",
        "tangent matrix with momentum",
        "adds h G instead of h mu G, from G_0 = H_0",
        "the derivative of PyTorch's own update; `recurrence='published'` gives the original's",
        "the original is off by 1.07 in an entry where ours agrees with central differences to 3e-10",
    ),
    Deviation(
        "D2",
        "zero eigenvalues",
        "no tolerance; rounding in float32 splits exact zeros into positive and negative",
        "|w| <= 32 eps max|w| is zero, one rule everywhere",
        "counts of positive and negative directions; not the projected gradient beyond rounding",
    ),
    Deviation(
        "D3",
        "random choice of k directions",
        "draws with replacement and raises for an empty set",
        "draws without replacement; an empty set prunes nothing",
        "prune_k='rand' prunes exactly k directions",
    ),
    Deviation(
        "D4",
        "noise in pruned directions",
        "the null space, about 5 000 dimensions of the MLP, takes part for `pos` and `neg`",
        "only with `noise_on_null=True`",
        "size of the noise",
    ),
    Deviation(
        "D5",
        "perturbations",
        "random ones are normalised per tensor",
        "the whole flat perturbation has exactly the given norm",
        "strategies start at the same distance",
    ),
    Deviation(
        "D6",
        "fit of the growth law",
        "unconstrained, rates per sample index",
        "rates per step, constrained to a, b >= 0; `fit_theoretical_bound` is the original's fit",
        "rates have a meaning; the curve differs where the unconstrained b is negative",
    ),
    Deviation(
        "D7",
        "Figures 2b to 3b at paper scale",
        "tangent matrix of whole runs",
        "of the first 1 000 to 2 000 steps, while its singular values are resolved",
        "exponents are finite-time ones of that time, which the record states",
    ),
)
