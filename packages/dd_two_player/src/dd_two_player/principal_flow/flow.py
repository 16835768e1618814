"""Flows that model gradient descent with learning rate ``h`` on a loss ``E(x)``, ``x`` of shape ``(dim,)``.

With gradient ``g``, Hessian ``H`` and its eigenpairs ``(l_i, u_i)``:

* gradient flow ``x' = -g``, local error 2;
* IGR flow ``x' = -g - (h/2) H g``, local error 3;
* third-order flow, adding ``-h^2 ((1/3) H^2 g + (1/12) grad(g' H g, g constant))``, local error 4;
* principal flow ``x' = sum_i c(h l_i) (u_i . g) u_i`` with ``c(z) = log(1 - z) / z``, local error 3, and
  exact on quadratics: flowing for time ``h`` multiplies direction ``i`` by ``1 - h l_i``, also where that
  diverges. For ``h l_i > 1`` it is complex, and so is the path; take the real part at the very end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from dd_two_player.flows import integrate
from gdyn_common.errors import require_count

__all__ = [
    "gradient_descent",
    "gradient_flow",
    "igr_flow",
    "integrate_principal_flow",
    "principal_coefficient",
    "principal_field",
    "quadratic_principal_flow",
    "third_order_flow",
]

Loss = Callable[[Any], Any]
Field = Callable[[Any], Any]
SERIES_BELOW = 1e-2
SERIES = [1 / n for n in range(9, 0, -1)]  # -c(z) up to z^8: exact to 1e-17 there
CAP = 100.0


def principal_coefficient(z: Any, cap: float = CAP) -> Complex[np.ndarray, "..."]:
    """Return ``c(z) = log(1 - z) / z`` with ``c(0) = -1``, complex for ``z > 1``.

    Args:
        z: Learning rate times eigenvalue, real or complex; ``c`` is analytic on either side of the real line,
            with a cut from ``1`` to ``1 + i inf``.
        cap: Bound on the modulus; ``c`` is singular at ``z = 1``, where gradient descent annihilates a
            direction in one step.

    Example:
        >>> principal_coefficient([0.0, 0.5]).real.round(6).tolist()
        [-1.0, -1.386294]
        >>> complex(principal_coefficient(2.0)).real  # beyond z = 2 the direction is unstable
        0.0
        >>> principal_coefficient(1.0).real.item()
        -100.0
    """
    if not cap > 0:
        raise ValueError(f"cap is {cap}; it must be positive.")
    values = np.asarray(z, dtype=complex)
    small = np.abs(values) < SERIES_BELOW
    singular = values == 1
    safe = np.where(small | singular, 0.5, values)
    log = np.log1p(-safe)
    # For real z > 1 the branch is log(z - 1) + i pi, and it must go on to both sides of that line, along
    # which a path of the flow runs: the cut lies at Re z = 1, Im z > 0 instead.
    exact = (log + 2j * np.pi * (log.imag < -np.pi / 2)) / safe
    series = -np.polyval(SERIES, values)
    c = np.where(small, series, np.where(singular, -cap, exact))
    return c * np.minimum(1.0, cap / np.abs(c)) if np.isfinite(cap) else c


def principal_field(loss: Loss, learning_rate: float, cap: float = CAP) -> Callable[[Any], np.ndarray]:
    """Return the principal flow's field on complex points.

    Gradient and Hessian are those of the analytic continuation of the loss, so it must be made of analytic
    functions.

    Args:
        loss: ``(dim,) -> scalar``, traceable for complex input.
        learning_rate: Step of the gradient descent that is modelled.
        cap: See :func:`principal_coefficient`.

    Raises:
        ValueError: At the first point, if the loss is not analytic there, or the point no vector.
    """
    check_rate(learning_rate)
    unchecked = [True]
    gradient = jax.jit(jax.grad(loss, holomorphic=True))
    hessian = jax.jit(jax.jacfwd(jax.grad(loss, holomorphic=True), holomorphic=True))

    def field(x: Any) -> np.ndarray:
        point = jnp.asarray(x, complex)
        if unchecked:
            _check_analytic(loss, point)
            unchecked.clear()
        g, h = np.asarray(gradient(point)), np.asarray(hessian(point))
        if np.all(h.imag == 0):
            values, vectors = np.linalg.eigh(h.real)
            projections = vectors.T @ g
        else:  # complex symmetric: no orthonormal eigenvectors
            values, vectors = np.linalg.eig(h)
            projections = np.linalg.solve(vectors, g)
        velocity = vectors @ (principal_coefficient(learning_rate * values, cap) * projections)
        return np.asarray(velocity, g.dtype)

    return field


def integrate_principal_flow(
    loss: Loss,
    learning_rate: float,
    start: Any,
    times: Any,
    *,
    cap: float = CAP,
    rtol: float = 1e-10,
    atol: float = 1e-12,
) -> Complex[np.ndarray, "times dim"]:
    """Integrate the principal flow adaptively in complex arithmetic; NaN rows after a blow-up.

    Raises:
        ValueError: If times do not increase from 0, or the rate is not positive.
        FloatingPointError: If the field changes too fast to be followed, as near ``h l = 1``.

    Example:
        On ``3 x^2 / 2`` descent with rate 0.5 overshoots, and so does the flow:

        >>> with jax.enable_x64(True):
        ...     path = integrate_principal_flow(lambda x: 1.5 * (x**2).sum(), 0.5, [0.3], [0.5])
        >>> path.real.round(6).tolist()
        [[-0.15]]
    """
    return integrate(
        principal_field(loss, learning_rate, cap), np.asarray(start, complex), times, rtol=rtol, atol=atol
    )


def quadratic_principal_flow(
    hessian: Float[np.ndarray, "dim dim"], learning_rate: float, start: Float[np.ndarray, " dim"], times: Any
) -> Complex[np.ndarray, "times dim"]:
    """Return the exact principal flow on ``E = x' H x / 2``, one exponential per eigen-direction.

    A direction with ``h l_i = 1`` is gone at once, as it is after one step of gradient descent.

    Example:
        >>> path = quadratic_principal_flow(np.diag([2.0, 0.02]), 0.9, np.array([-0.35, -0.2]), [9.0])
        >>> path[0].real.round(6).tolist()
        [-0.037581, -0.16678]
    """
    check_rate(learning_rate)
    _check_real("Hessian", hessian)
    _check_real("start", start)
    matrix = np.asarray(hessian, float)
    if not np.allclose(matrix, matrix.T, rtol=1e-6, atol=1e-6 * np.abs(matrix).max(initial=0.0)):
        raise ValueError("the Hessian is not symmetric; that of x' A x / 2 is (A + A') / 2.")
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    amplitudes = vectors.T @ np.asarray(start, float)
    grid = np.asarray(times, float)
    killed = learning_rate * values == 1
    rates = principal_coefficient(np.where(killed, 0.0, learning_rate * values), cap=np.inf) * values
    with np.errstate(invalid="ignore", over="ignore"):
        growth = np.exp(np.outer(grid, rates))
    growth[:, killed] = np.where(grid == 0, 1.0, 0.0)[:, None]
    path = np.zeros((grid.size, len(values)), complex)
    for i in np.flatnonzero(amplitudes):
        reached = np.flatnonzero(vectors[:, i])  # what overflows in one direction leaves the others alone
        with np.errstate(invalid="ignore", over="ignore"):
            path[:, reached] += np.outer(growth[:, i] * amplitudes[i], vectors[reached, i])
    return path


def gradient_flow(loss: Loss) -> Field:
    """Return the field ``-g``."""
    gradient = _gradient(loss)
    field: Field = jax.jit(lambda x: -gradient(x))
    return field


def igr_flow(loss: Loss, learning_rate: float) -> Field:
    """Return the field of implicit gradient regularisation, ``-g - (h/2) H g`` (Barrett and Dherin 2021)."""
    check_rate(learning_rate)
    gradient = _gradient(loss)

    @jax.jit
    def field(x: Array) -> Any:
        g, hg = jax.jvp(gradient, (x,), (gradient(x),))
        return -g - learning_rate / 2 * hg

    return field


def third_order_flow(loss: Loss, learning_rate: float) -> Field:
    """Return the field that follows gradient descent with a local error of order 4."""
    check_rate(learning_rate)
    gradient = _gradient(loss)

    @jax.jit
    def field(x: Array) -> Any:
        def hessian_times(point: Array, v: Array) -> Any:
            return jax.jvp(gradient, (point,), (v,))[1]

        g = gradient(x)
        hg = hessian_times(x, g)
        bend = jax.grad(lambda point: g @ hessian_times(point, g))(x)
        return -g - learning_rate / 2 * hg - learning_rate**2 * (hessian_times(x, hg) / 3 + bend / 12)

    return field


def gradient_descent(
    loss: Loss, learning_rate: float, start: Any, num_steps: int
) -> Float[np.ndarray, "steps dim"]:
    """Return the path of gradient descent, the start included.

    >>> gradient_descent(lambda x: (x**2).sum(), 0.25, np.array([1.0]), 2).tolist()
    [[1.0], [0.5], [0.25]]
    """
    check_rate(learning_rate)
    require_count("num_steps", num_steps, least=0)
    _check_real("start", start)
    gradient = jax.grad(loss)
    step = jax.jit(lambda x: x - learning_rate * gradient(x))
    path = [np.asarray(start, float)]
    for _ in range(num_steps):
        path.append(np.asarray(step(path[-1]), float))
    return np.stack(path)


def _gradient(loss: Loss) -> Field:
    gradient = jax.grad(loss)

    def real_gradient(x: Array) -> Any:
        _check_real("point", x)
        return gradient(x)

    return real_gradient


def _check_real(name: str, value: Any) -> None:
    if jnp.iscomplexobj(value):
        raise ValueError(f"the {name} is complex; split it into real and imaginary parts.")


def check_rate(learning_rate: float) -> None:
    """Refuse what is no rate of gradient descent."""
    if not (np.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate is {learning_rate}; it must be positive and finite.")


def check_gradient(gradient: Any) -> Float[np.ndarray, " dim"]:
    """Return a gradient in double precision; refuse what is no finite real vector."""
    found = np.asarray(gradient)
    if found.ndim != 1 or np.iscomplexobj(found) or not np.isfinite(found.astype(float)).all():
        raise ValueError(
            f"the gradient is {found.dtype} of shape {found.shape}; it must be a finite real vector."
        )
    return found.astype(float)


def _check_analytic(loss: Loss, point: Array) -> None:
    """Refuse a loss that fails the equations of Cauchy and Riemann: its continuation is another function."""
    if point.ndim != 1:
        raise ValueError(f"the point has shape {point.shape}; flatten the parameters to one vector.")
    direction = np.random.default_rng(0).standard_normal(point.shape)
    along, across = (
        jax.jvp(loss, (point,), (jnp.asarray(factor * direction, point.dtype),))[1] for factor in (1, 1j)
    )
    if (abs(across - 1j * along) > 1e-3 * abs(along)).any():
        raise ValueError(
            "the loss is not analytic: it conjugates its parameters, or takes their modulus or real part; "
            "write x @ x for jnp.vdot(x, x), jnp.abs(x)**2 and norms."
        )
