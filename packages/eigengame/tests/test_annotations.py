"""Shape annotations hold at run time. In a child process: the checks would mask our own messages."""

import subprocess
import sys
import textwrap

PROGRAM = """
    from jaxtyping import TypeCheckError, install_import_hook
    hook = install_import_hook("eigengame", "beartype.beartype")
    import jax, jax.numpy as jnp, optax
    from eigengame import core, exact, laplacian, metrics, optax_transforms, reference
    V, X = jnp.eye(2, 3), jnp.ones((4, 3))
    for direction in (core.mu_direction, core.alpha_direction, core.gha_direction):
        direction(V, X, weights=core.penalty_weights(2))
        try:
            direction(V, X, weights=jnp.ones((2, 3)))
        except TypeCheckError:
            continue
        raise SystemExit(f"{direction} accepted a (2, 3) array of weights")
    core.utilities(V, X, "mu"), core.rayleigh(V, X)
    core.generalized_rayleigh(V, V, V), core.gamma_direction(V, V, V)
    config = core.Config(optax.sgd(0.1), utilities="mu", center=True, moments=True)
    state = core.init(jax.random.key(0), 2, 3, config.optimizer, moments=True)
    core.step(state, X, config), core.scan_steps(state, X[None], config)
    reference.eg_grads(V[0], jnp.ones(2), V, X), reference.utility(V[0], jnp.ones(2), V, X)
    metrics.subspace_distance(V, V), exact.pca(X, 2)
    laplacian.laplacian_product(V, jnp.array([[0, 1]]))
    print("checked")
"""


def test_annotations_hold_at_run_time():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "checked", done.stderr[-2000:]
