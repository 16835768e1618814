"""Where we do otherwise than the original, why, and what changes."""

from __future__ import annotations

from gdyn_reproduce.registry import Deviation

DEVIATIONS = (
    Deviation(
        "D1",
        "times of Fig. 1",
        "profiles after int(t / dt) + 1 steps under the label t",
        "profiles after round(t / dt) steps; legacy_times=true draws the original's",
        "labels are true; curves differ by one or two steps",
    ),
    Deviation(
        "D2",
        "recorded loss of the linear PDE",
        "data loss at w_t plus decay at w_{t+1}",
        "both at w_t; loss=mixed gives the original's",
        "none on stability; below the drawn line's width",
    ),
    Deviation(
        "D3",
        "sigmoid and cross-entropy",
        "exp(p) / (1 + exp(p)) and y log(yhat), NaN once p > 36.7",
        "stable forms",
        "losses stay finite until float64 overflows",
    ),
    Deviation(
        "D4",
        "scaled iteration of Fig. 2",
        "sample j after j n - 1 updates for n > 1, weights written to disk every n steps",
        "sample j after exactly j n updates, the metric computed on the fly",
        "one update in n; no gigabytes of weights",
    ),
    Deviation(
        "D5",
        "length of Fig. 2's runs",
        "n whole epochs, 391 n updates",
        "100 n updates, which is what is drawn",
        "none on the figure",
    ),
    Deviation(
        "D6",
        "moving average of Fig. 4 right",
        "the axis is called scaled iteration",
        "plain iteration, which it is; window and length as in the original",
        "none",
    ),
    Deviation(
        "D7",
        "0 / 0 in the average relative L1",
        "NaN",
        "0",
        "equal zero weights count as equal",
    ),
    Deviation(
        "D8",
        "the printed alpha_min",
        "from the Fourier transform of the whole image, 1.07e9",
        "the largest eigenvalue of M^T M, 12 960 000; the other is called periodic_bound",
        "83 times smaller, and the value that decides",
    ),
    Deviation(
        "D9",
        "Table 1 and Fig. 2, quick presets",
        "ResNet56 on CIFAR-10",
        "a 14-layer residual network of width 8 on 8x8 digits",
        "shows the effect and its controls; says nothing about the paper's numbers",
    ),
)
