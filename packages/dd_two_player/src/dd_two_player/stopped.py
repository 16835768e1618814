"""Which numbers move a function, and which its derivative sees: not those behind ``stop_gradient``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from jax.extend.core.primitives import copy_p, stop_gradient_p

__all__ = ["held_constant", "hidden_leaves", "moving_leaves", "seen_leaves"]

_STEPS = frozenset({"ceil", "floor", "round", "sign"})  # constant but for jumps, so their derivative is zero
_JAX = str(Path(jax.__file__).parent)
_FUNCTIONS = re.compile(r"/_src/(nn|ops|scipy)/")
_LAYERS = re.compile(r"-packages/(haiku|flax|equinox)/")
_CALLS = frozenset({"checkpoint", "closed_call", "custom_jvp_call", "custom_vjp_call", "jit", "pjit"})


def moving_leaves(function: Callable[[Any], Any], at: Any) -> list[set[int]]:
    """Return, for each leaf that a function returns, the numbers of the argument's leaves that move it.

    The function is traced and not computed. What only chooses (comparisons, rounding) moves nothing; what is
    multiplied by zero does, and so does what is behind ``stop_gradient``.

    Raises:
        jax.errors.ConcretizationTypeError: If Python code branches on the argument.

    >>> moving_leaves(lambda x: (x["a"] + 1.0, x["b"] * x["a"]), {"a": 1.0, "b": 2.0})
    [{0}, {0, 1}]
    >>> moving_leaves(lambda x: jax.numpy.where(x[0] > 0, x[1], 1.0), (1.0, 2.0))
    [{1}]
    """
    leaves, structure = jax.tree.flatten(at)
    traced = jax.make_jaxpr(lambda *x: jax.tree.leaves(function(jax.tree.unflatten(structure, x))))(*leaves)
    return _follow(traced.jaxpr, [{i} for i in range(len(leaves))])


def seen_leaves(function: Callable[[Any], Any], at: Any) -> list[set[int]]:
    """Return the same for the derivative: along which leaves it is not zero by construction.

    >>> seen_leaves(lambda x: x[0] * jax.lax.stop_gradient(x[1]) + x[2], (1.0, 2.0, 3.0))
    [{0, 2}]
    """
    return moving_leaves(lambda along: jax.jvp(function, (at,), (along,))[1], at)


def _follow(program: Any, given: list[set[int]]) -> list[set[int]]:
    """Return what moves the outputs of a traced program, given what moves its inputs."""
    known = dict(zip(program.invars, given, strict=True))

    def moving(value: Any) -> set[int]:
        return set() if hasattr(value, "val") else known.get(value, set())  # a constant has a value

    for step in program.eqns:
        name, inputs = step.primitive.name, [moving(value) for value in step.invars]
        inner = step.params.get("jaxpr", step.params.get("call_jaxpr"))
        inner = getattr(inner, "jaxpr", inner)
        if name in _CALLS and inner is not None and len(inner.invars) == len(inputs):
            outputs = _follow(inner, inputs)
        else:
            together = set() if name in _STEPS else set().union(*inputs)
            outputs = [together] * len(step.outvars)
        for value, found in zip(step.outvars, outputs, strict=True):
            dtype = getattr(value.aval, "dtype", None)
            known[value] = found if dtype is not None and jnp.issubdtype(dtype, jnp.inexact) else set()
    return [moving(value) for value in program.outvars]


@jax.jit
def held_constant(value: Any) -> Any:
    """Return a value that derivatives take for a constant, as ``stop_gradient``, and that may be one.

    `hidden_leaves` passes over it: for what belongs to a network's state, as the vectors of spectral norm.

    >>> jax.grad(lambda x: x * held_constant(x))(3.0).item()
    3.0
    """
    return jax.lax.stop_gradient(value)


def hidden_leaves(gradients: Sequence[Callable[[Any], Any]], at: tuple[Any, ...]) -> set[tuple[int, int]]:
    """Return which derivatives of the gradients of a game autodiff gets wrong, because something is stopped.

    Gradients are traced. Their derivatives along the players' steps are computed as autodiff does, and once
    more with each ``stop_gradient`` replaced by the identity: so a step changes them. Both agree if nothing
    is stopped, or if what is stopped makes no difference, as the largest entry in a softmax of one's own.

    They are compared at two random points near ``at``, the second one positive. A difference that is no
    rounding vanishes at one such point with probability zero, unless it is in a branch that is not taken
    there. JAX's own softmax and the like are known to make none. Layers of haiku, flax and equinox stop on
    purpose: what they stop counts as their state. Traced values, of ``at`` or of what the functions close
    over, are drawn as well. A point where a derivative is not finite tells nothing, nor does a stop within a
    custom derivative. Numbers are computed only if something is stopped, in double precision if the functions
    work in it; what they log is left out.

    Args:
        gradients: For each player, a function of ``at`` that returns the gradient of its loss.
        at: Parameters of the players.

    Returns:
        Pairs: the number of a player, and that of a leaf of ``at`` along which its gradient is misjudged.

    >>> bilinear = lambda p: 3.0 * p[1], lambda p: 2.0 * p[0]
    >>> hidden_leaves(bilinear, (1.0, 2.0))
    set()
    >>> hidden_leaves((lambda p: p[1] + 2.0 * jax.lax.stop_gradient(p[1]), bilinear[1]), (1.0, 2.0))
    {(0, 1)}
    """
    narrow = _trace(gradients, at, wide=False)
    if not any("stop" in _without_logs(program.jaxpr, False)[1] for program in narrow):
        return set()
    try:
        with jax.enable_x64(True):
            return _compare(_trace(gradients, at, wide=True), at, wide=True)
    except Exception:  # functions that insist on their types, in whatever words, are taken as they are
        return _compare(narrow, at, wide=False)


def _kinds(at: tuple[Any, ...], wide: bool) -> list[Any]:
    """Return the types of the leaves, or double precision ones in their places."""
    types = [jnp.result_type(leaf) for leaf in jax.tree.leaves(at)]
    return [jnp.promote_types(t, "float64") if wide else t for t in types]


def _trace(gradients: Sequence[Callable[[Any], Any]], at: tuple[Any, ...], wide: bool) -> list[ClosedJaxpr]:
    leaves, structure = jax.tree.flatten(at)
    shaped = [jax.ShapeDtypeStruct(jnp.shape(a), t) for a, t in zip(leaves, _kinds(at, wide), strict=True)]
    with jax.default_matmul_precision("highest"):
        return [
            jax.make_jaxpr(lambda *x, g=g: jax.tree.leaves(g(jax.tree.unflatten(structure, x))))(*shaped)
            for g in gradients
        ]


def _compare(traced: list[ClosedJaxpr], at: tuple[Any, ...], wide: bool) -> set[tuple[int, int]]:
    leaves, types = jax.tree.leaves(at), _kinds(at, wide)
    plain, lifted = ([_without_logs(program.jaxpr, lift) for program in traced] for lift in (False, True))
    stopping = [player for player, (_, found) in enumerate(lifted) if "stop" in found]
    if any("effect" in found for _, found in lifted):
        return set()

    @jax.jit
    def slopes(constants: Any, point: Any) -> Any:
        return [_run(program, c, point) for (program, _), c in zip(plain, constants, strict=True)]

    @partial(jax.jit, static_argnums=0)
    def compare(player: int, constants: Any, point: Any, along: Any) -> tuple[Any, Any]:
        one, other = (
            jax.jvp(partial(_run, program, constants[player]), (point,), (along,))[1]
            for program in (plain[player][0], lifted[player][0])
        )
        return _norm([a - b for a, b in zip(one, other, strict=True)]), _norm(one) + _norm(other)

    owners = [player for player, side in enumerate(at) for _ in jax.tree.leaves(side)]
    noise = max(_coarsest(program) for program, _ in plain) ** (1 / 3)
    found: set[tuple[int, int]] = set()
    with jax.ensure_compile_time_eval():
        for positive in (False, True):
            random = np.random.default_rng(0)
            point = [_drawn(leaf, t, random, positive) for leaf, t in zip(leaves, types, strict=True)]
            constants = [[_known(c, random) for c in program.consts] for program in traced]
            step = [g for side in slopes(constants, point) for g in side]
            step = [g * jnp.asarray(random.uniform(0.5, 1.5, g.shape), g.dtype) for g in step]

            def along(player: int, chosen: set[int]) -> list[float]:
                direction = [g if i in chosen else jnp.zeros_like(g) for i, g in enumerate(step)]  # noqa: B023
                return [float(a) for a in compare(player, constants, point, direction)]  # noqa: B023

            for player in stopping:
                whole = along(player, set(range(len(step))))[1]
                for owner in set(owners):
                    block = {i for i, o in enumerate(owners) if o == owner}
                    gap, size = along(player, block)
                    least = noise * (size + 0.01 * whole)
                    if gap > least:  # not so if it is not a number
                        gaps = {i: along(player, {i})[0] for i in block}
                        found |= {(player, i) for i in block if gaps[i] >= min(least, max(gaps.values()))}
    return found


def _coarsest(program: Any) -> float:
    """Return the largest rounding of what a traced program computes."""
    kinds = {
        value.aval.dtype for step in program.eqns for value in step.outvars if hasattr(value.aval, "dtype")
    }
    inner = [
        _coarsest(getattr(value, "jaxpr", value))
        for step in program.eqns
        for value in jax.tree.leaves(list(step.params.values()))
        if isinstance(value, Jaxpr | ClosedJaxpr)
    ]
    return max(
        [float(jnp.finfo(k).eps) for k in kinds if jnp.issubdtype(k, jnp.inexact)] + inner, default=0.0
    )


def _run(program: Jaxpr, constants: Any, point: Any) -> list[Any]:
    found: list[Any] = jaxpr_as_fun(ClosedJaxpr(program, constants))(*point)
    return found


def _norm(leaves: list[Any]) -> Any:
    wide = [jnp.abs(a).astype(jnp.promote_types(jnp.abs(a).dtype, "float32")) for a in leaves]
    return jnp.sqrt(sum(((a**2).sum() for a in wide), jnp.zeros(())))


def _without_logs(program: Any, lift: bool) -> tuple[Any, set[str]]:
    """Return a traced program without calls that only log, and which of "stop" and "effect" it contains.

    Args:
        program: Traced, or any parameter of a step, such as the branches of a choice.
        lift: Whether the identity takes the place of each stop.
    """
    if isinstance(program, ClosedJaxpr):
        inner, found = _without_logs(program.jaxpr, lift)
        return ClosedJaxpr(inner, program.consts), found
    if isinstance(program, tuple | list) and any(isinstance(p, Jaxpr | ClosedJaxpr) for p in program):
        parts, words = zip(*(_without_logs(part, lift) for part in program), strict=True)
        made = type(program)(*parts) if hasattr(program, "_fields") else type(program)(parts)
        return made, set().union(*words)
    if not isinstance(program, Jaxpr):
        return program, set()
    steps, found = [], set()
    for step in program.eqns:
        inner = {key: _without_logs(value, lift) for key, value in step.params.items()}
        calls = any(value is not step.params[key] for key, (value, _) in inner.items())
        if step.effects and not calls:
            if not step.outvars:
                continue
            found.add("effect")
        if step.primitive is stop_gradient_p:
            if not _is_meant(step):
                found.add("stop")
                step = step.replace(primitive=copy_p) if lift else step
        elif step.params.get("name") != "held_constant":
            found = found.union(*(words for _, words in inner.values()))
            step = step.replace(params={k: value for k, (value, _) in inner.items()}, effects=frozenset())
        steps.append(step)
    return program.replace(eqns=steps, effects=frozenset()), found


def _is_meant(step: Any) -> bool:
    """Whether JAX's own softmax and the like stop, where it makes no difference, or a layer of a library.

    Spectral norm of haiku, flax and equinox does: its vectors are its state.
    """
    for frame in step.source_info.traceback.frames if step.source_info.traceback else ():
        if not frame.file_name.startswith(_JAX):
            return bool(_LAYERS.search(frame.file_name))
        if _FUNCTIONS.match(frame.file_name, len(_JAX)):
            return True
    return False


def _drawn(leaf: Any, dtype: Any, random: np.random.Generator, positive: bool = False) -> Any:
    """Return numbers near those of a leaf, or of the size of a network's weights where these are traced."""
    shape = jnp.shape(leaf)
    noise = random.standard_normal(shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        noise = noise + 1j * random.standard_normal(shape)
    size = 0.0 if isinstance(leaf, jax.core.Tracer) else float(jnp.sqrt((jnp.abs(leaf) ** 2).mean()))
    if size:
        drawn = jnp.asarray(leaf, dtype) + jnp.asarray(0.3 * size * noise, dtype)
    else:
        drawn = jnp.asarray(noise / max(1.0, float(np.prod(shape[:-1]))) ** 0.5, dtype)
    return jnp.abs(drawn).astype(dtype) if positive else drawn


def _known(value: Any, random: np.random.Generator) -> Any:
    """Return a constant of a program; of one that is traced, some value of its kind."""
    if not isinstance(value, jax.core.Tracer):
        return value
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0, impl=jax.random.key_impl(value)), value.shape)
    if jnp.issubdtype(value.dtype, jnp.inexact):
        return _drawn(value, value.dtype, random)
    return jnp.ones(value.shape, value.dtype)
