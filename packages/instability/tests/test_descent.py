import numpy as np
import pytest
import torch

from instability.pde import nonlinear as nonlinear_pde
from instability.pde.convolution import checkerboard
from instability.pde.descent import DescentOptions, descend, replicas

IMAGE, KERNEL = checkerboard(64), nonlinear_pde.initial_kernel(8)
CHAOTIC = {"learning_rates": 0.07 * 16, "weight_decays": 1.25}  # the small twin of lr 0.07, alpha 20


@pytest.mark.parametrize("count", [6, 16, 17, 21, 33, 36])
def test_null_controls_are_exactly_zero_at_any_replica_count(count):
    """K = 1 and k = 2 first and last, perturbed copies between them, in the chaotic regime."""
    ks = [1, 2] + [3] * (count - 4) + [2, 1]
    result = nonlinear_pde.simulate(IMAGE, KERNEL, perturbations=ks, num_steps=200, **CHAOTIC)
    for control in (1, -2, -1):
        np.testing.assert_array_equal(result.losses[control], result.losses[0])
        np.testing.assert_array_equal(result.kernels[control], result.kernels[0])
    # At a single step chaotic copies may happen to meet; over many they do not.
    assert np.abs(result.losses[2] - result.losses[0])[100:].max() > 0.1


def test_a_replica_does_not_depend_on_its_neighbours():
    alone = nonlinear_pde.simulate(IMAGE, KERNEL, perturbations=5, num_steps=150, **CHAOTIC)
    beside = nonlinear_pde.simulate(IMAGE, KERNEL, perturbations=[1, 3, 5, 7], num_steps=150, **CHAOTIC)
    np.testing.assert_array_equal(beside.kernels[2], alone.kernels[0])


@pytest.mark.parametrize("threads", [1, 2])
def test_two_runs_agree_bit_for_bit_at_each_thread_count(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runs = [nonlinear_pde.simulate(IMAGE, KERNEL, num_steps=100, **CHAOTIC).kernels for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_equals_torch(nesterov):
    target = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    parameter = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    optimizer = torch.optim.SGD(
        [parameter], lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.3, foreach=False
    )
    for _ in range(20):
        parameter.grad = parameter.detach() - target
        optimizer.step()
    ours = descend(
        lambda w: (0.0, w - target),
        np.zeros((2, 2)),
        replicas(0.1, 0.3),
        20,
        options=DescentOptions(momentum=0.9, nesterov=nesterov),
    )
    np.testing.assert_allclose(ours.kernels[0], parameter.detach().numpy(), rtol=1e-14)


def test_divergence_is_recorded_as_data():
    result = nonlinear_pde.simulate(
        IMAGE, KERNEL, learning_rates=[1.0, 20.0], weight_decays=1.25, num_steps=300
    )
    stop = result.stopped_at[1]
    assert result.stopped_at[0] == -1
    assert stop > 0
    assert np.isfinite(result.losses[1, :stop]).all()
    assert np.isnan(result.losses[1, stop:]).all()
    assert np.isfinite(result.kernels).all()  # the last finite ones


def test_observer_sees_every_step():
    seen = []
    nonlinear_pde.simulate(
        IMAGE,
        KERNEL,
        num_steps=5,
        perturbations=[1, 3],
        observe=lambda n, w: seen.append((n, tuple(w.shape))),
        **CHAOTIC,
    )
    assert seen == [(n, (2, 8, 8)) for n in range(1, 6)]
