import numpy as np
import pytest
import torch
from torch import nn

from instability.copies import Copies
from instability.exponents.separation import lyapunov_estimate
from instability.pde.activations import swish
from instability.pde.convolution import checkerboard
from instability.pde.reduced_map import ReducedMap
from instability.perturbed_sgd import PerturbedSGD


class Signal(nn.Module):
    """The one-layer network on a checkerboard, seen through its patches +s and -s."""

    def __init__(self, kernel_size, image_size):
        super().__init__()
        patch = checkerboard(kernel_size, first=1.0).ravel()
        self.kernel = nn.Parameter(torch.from_numpy(0.3 * patch / patch.size))
        self.patch = torch.from_numpy(patch)
        self.share = ReducedMap(kernel_size, image_size, 0.0).positive_share

    def forward(self):
        c = self.kernel @ self.patch
        return self.share * swish(c) + (1 - self.share) * swish(-c)


@pytest.mark.parametrize(("learning_rate", "tolerance"), [(0.03, 0.02), (0.07, 0.05)])
def test_estimate_equals_the_reduced_maps_exponent(learning_rate, tolerance):
    """2 000 steps of a chaotic orbit leave a standard error of about 0.02 on the exponent."""
    exact = ReducedMap(8, 64, 1.25).lyapunov_exponent(16 * learning_rate)
    copies = Copies(
        Signal(8, 64), lambda p: PerturbedSGD(p, lr=16 * learning_rate, weight_decay=1.25), (1, 1)
    )
    growth = lyapunov_estimate(copies, [lambda m: nn.functional.softplus(-m())] * 2000, separation=1e-8)
    assert np.mean(growth[200:]) == pytest.approx(exact, abs=tolerance)


def test_only_two_equal_copies():
    copies = Copies(nn.Linear(1, 1), lambda p: PerturbedSGD(p, lr=0.1), (1, 3))
    with pytest.raises(ValueError, match=r"must be \(1, 1\)"):
        lyapunov_estimate(copies, [])
