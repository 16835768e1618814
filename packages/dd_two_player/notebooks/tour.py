# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # A tour of `dd_two_player`
# DiracGAN, one number per player: the flow is a circle, descent spirals out, and the modified flow says why.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from dd_two_player import Game, Regularization, drift_coefficients

game = Game(
    lambda disc, gen, batch: jax.nn.softplus(disc * gen) + jax.nn.softplus(-disc * 0.0),
    lambda disc, gen, batch: -jax.nn.softplus(disc * gen),
)
h = 0.1
drift = drift_coefficients((h, h), scheme="simultaneous")

# %% [markdown]
# Descent with finite steps; a very fine discretisation of the same game; and the fine discretisation of the
# game to which
# the drift terms were added, which is what the coarse steps really follow.


# %%
def path(rate, steps, coefficients=None):
    gradients = jax.jit(lambda players: game.gradients(players, None, coefficients))
    players, points = (jnp.array(1.0), jnp.array(1.0)), []
    for _ in range(steps):
        points.append(players)
        players = jax.tree.map(lambda p, g: p - rate * g, players, gradients(players))
    return np.array(points)


fine = 0.002
paths = {
    "descent, h = 0.1": path(h, 200),
    "flow": path(fine, int(200 * h / fine)),
    "modified flow": path(fine, int(200 * h / fine), drift),
    "descent, interaction cancelled": path(h, 200, Regularization.cancel_interaction().coefficients(drift)),
}
figure, axes = plt.subplots(figsize=(5, 5))
for (label, points), style in zip(paths.items(), (".", "--", "-", "+"), strict=True):
    axes.plot(*points.T, style, label=label, markersize=3)
    print(f"{label}: distance to the equilibrium {np.linalg.norm(points[-1]):.3f}")
axes.set(xlabel="discriminator", ylabel="generator", aspect="equal")
axes.legend()
