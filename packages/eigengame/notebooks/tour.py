# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # A tour of `eigengame`
# Ten vectors that play a game find the principal components of a stream.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

from eigengame.core import Config, alpha_direction, init, mu_direction, step
from eigengame.metrics import longest_correct_eigenvector_streak, subspace_distance

rng = np.random.default_rng(0)
scales = np.geomspace(3, 0.1, 50).astype(np.float32)
truth = np.eye(50, dtype=np.float32)[:10]  # the coordinate axes are the principal components

# %% [markdown]
# One step is a direction, an optax update and a normalisation. Nothing of size 50 x 50 exists.

# %%
curves = {}
for algorithm in ("mu", "alpha"):
    config = Config(optax.sgd(0.1), algorithm=algorithm)
    state = init(jax.random.key(0), k=10, d=50, optimizer=config.optimizer)
    rows = []
    for t in range(600):
        batch = rng.standard_normal((16, 50)).astype(np.float32) * scales
        state, _ = step(state, batch, config)
        if t % 20 == 19:
            rows.append(
                (
                    t + 1,
                    float(subspace_distance(state.V, truth)),
                    int(longest_correct_eigenvector_streak(state.V, truth)),
                )
            )
    curves[algorithm] = np.array(rows)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
for algorithm, curve in curves.items():
    left.semilogy(curve[:, 0], curve[:, 1], label=algorithm)
    right.plot(curve[:, 0], curve[:, 2], label=algorithm)
left.set(xlabel="step", ylabel="subspace distance")
right.set(xlabel="step", ylabel="leading vectors within pi / 8")
left.legend()

# %% [markdown]
# Why the two differ at small batches: mu is linear in the sample covariance, so averaging over parts of a
# batch is
# exact; alpha divides by an estimate, so it is biased.

# %%
X = rng.standard_normal((256, 50)).astype(np.float32) * scales
for name, direction in (("mu", mu_direction), ("alpha", alpha_direction)):
    whole = direction(state.V, X)
    parts = np.mean([direction(state.V, part) for part in np.split(X, 16)], axis=0)
    error = np.linalg.norm(parts - whole) / np.linalg.norm(whole)
    print(f"{name}: relative error of the mean over 16 parts {error:.1e}")
