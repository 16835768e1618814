"""Noise scale from gradients that a training loop computes anyway: no extra pass, no copy of a gradient.

A step that accumulates k micro-batches of b examples (on one device, or on several data-parallel ranks)
knows k small gradients and their mean. With |g_small|^2 = |mu|^2 + v own and |g_mean|^2 = |mu|^2 + v
of_mean in expectation, the variance v of one example and |mu|^2 follow without bias, for the model and for
each of its parameters.

A step with a single backward pass knows more: the norms of its single examples' gradients follow from the
inputs and output gradients of its layers (Goodfellow 2015; Li et al. 2022). They are the small gradients
then, of one example each; `ExampleMeter` takes them.

Optimisers that take the sign or the polar factor of a gradient (signSGD, Muon) see noise in the dual norms,
l1 and nuclear. There the noise of one example is n = sqrt(b) E|g - g'| / sqrt(2) of two micro-batches, which
has an unbiased estimate. The norm m of the mean has none: a norm is no polynomial, and E|g_mean| exceeds it.
It is extrapolated as the Euclidean one is, m^2 = (E|g_mean|)^2 - n^2 of_mean. That is exact without noise,
and without a mean if the noise is Gaussian. In between it errs: where noise prevails in all coordinates
alike, m of l1 is 0.8 of the true one (sqrt(2/pi)); where coordinates differ in their noise it can be larger.
The noise scale is n^2 / m^2, so that noise and mean have equal norm in batches of that size.

Source: McCandlish et al. 2018, Appendix A.1 (two batch sizes; here the small one is that of the
micro-batches); Bernstein et al. 2018 (l1, signSGD); Jordan et al. 2024 (spectral descent, whose dual norm is
the nuclear one).
"""

from variance.noise_scale.example_meter import ExampleMeter
from variance.noise_scale.meter import NoiseMeter
from variance.noise_scale.norms import NormNoise
from variance.noise_scale.result import NoiseScale

__all__ = ["ExampleMeter", "NoiseMeter", "NoiseScale", "NormNoise"]
