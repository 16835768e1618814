"""Frames are applied, never formed; here they are formed, to compare."""

from __future__ import annotations

import pytest
import torch

from chaos.lyapunov import LyapunovTracker
from chaos.o2grad import LossSurface
from chaos.o2grad.frames import DenseFrame, IdentityFrame, InputFrame

ROUNDING = 1e-14  # sums of at most twenty products of numbers of order one


def orthonormal(rows, columns):
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64)).Q


def input_frame(order):
    """A first layer of 3 units on 5 inputs, with its bias in three places, and 4 more parameters."""
    if order == "weight bias":
        return InputFrame(22, slice(0, 15), slice(15, 18), 3, orthonormal(6, 2))
    if order == "bias weight":
        return InputFrame(22, slice(7, 22), slice(0, 3), 3, orthonormal(6, 2))
    return InputFrame(19, slice(2, 17), None, 3, orthonormal(5, 2))


FRAMES = {
    "identity": lambda: IdentityFrame(6),
    "dense": lambda: DenseFrame(orthonormal(8, 3)),
    "weight bias": lambda: input_frame("weight bias"),
    "bias weight": lambda: input_frame("bias weight"),
    "no bias": lambda: input_frame("no bias"),
}


@pytest.fixture(params=FRAMES)
def frame(request):
    torch.manual_seed(0)
    return FRAMES[request.param]()


@pytest.fixture
def Q(frame):
    return frame.expand(torch.eye(frame.rank, dtype=torch.float64))


def test_columns_are_orthonormal(frame, Q):
    assert Q.shape == (frame.n, frame.rank)
    torch.testing.assert_close(Q.T @ Q, torch.eye(frame.rank, dtype=torch.float64), atol=ROUNDING, rtol=0)


def test_every_operation_is_that_of_the_matrix(frame, Q):
    core = torch.randn(frame.rank, 4, dtype=torch.float64)
    full = torch.randn(frame.n, 4, dtype=torch.float64)
    M = torch.randn(frame.rank, frame.rank, dtype=torch.float64)
    M = M + M.T
    torch.testing.assert_close(frame.expand(core), Q @ core, atol=ROUNDING, rtol=0)
    torch.testing.assert_close(frame.restrict(full), Q.T @ full, atol=ROUNDING, rtol=0)
    torch.testing.assert_close(frame.dense(M), Q @ M @ Q.T, atol=ROUNDING, rtol=0)
    torch.testing.assert_close(frame.diagonal(M), (Q @ M @ Q.T).diagonal(), atol=ROUNDING, rtol=0)
    out = full.clone()
    frame.add_expanded(out, core, -0.5)
    torch.testing.assert_close(out, full - 0.5 * Q @ core, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("prunes", [False, True])
def test_tangent_step_in_the_frame_is_the_dense_step(prunes, weight_decay):
    """I - h (P H + c I), once in the frame of H and once with matrices."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
    x, y = torch.randn(3, 6, dtype=torch.float64), torch.tensor([0, 1, 2])
    H = LossSurface(model, torch.nn.CrossEntropyLoss()).hessian(None, x, y)
    pairs = H.eigh()
    discard = pairs.values < 0
    keep = (pairs, discard) if prunes else None
    tracker = LyapunovTracker(H.n, h=0.1, weight_decay=weight_decay)
    for _ in range(3):
        tracker.update(H, keep, gamma=0.5)
    V = pairs.vectors[:, discard]
    identity = torch.eye(H.n, dtype=torch.float64)
    P = identity - 0.5 * V @ V.T if prunes else identity
    step = identity - 0.1 * (P @ H.dense() + weight_decay * identity)
    assert discard.any()
    torch.testing.assert_close(tracker.Y, torch.linalg.matrix_power(step, 3), atol=ROUNDING, rtol=0)
