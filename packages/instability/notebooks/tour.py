# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # A tour of `instability`
# One layer, one image, one label, plain gradient descent: enough for rounding error to decide where
# training ends.

# %%
import matplotlib.pyplot as plt
import numpy as np

from instability import average_relative_l1
from instability.pde import nonlinear as nonlinear_pde
from instability.pde.convolution import checkerboard
from instability.pde.reduced_map import ReducedMap

image, kernel = checkerboard(64), nonlinear_pde.initial_kernel(8)

# %% [markdown]
# The losses of Figure 4 (left) at a quarter of the size: settle, oscillate without blowing up, diverge.

# %%
rates = [0.16, 1.12, 2.08]
losses = nonlinear_pde.simulate(image, kernel, learning_rates=rates, weight_decays=1.25, num_steps=200).losses
figure, axes = plt.subplots()
axes.loglog(np.arange(1, 201), losses.T, label=[f"learning rate {rate}" for rate in rates])
axes.set(xlabel="iteration", ylabel="loss", ylim=(0.1, 1e6))
axes.legend()

# %% [markdown]
# Two copies whose updates are equal in exact arithmetic, `(lr k)(g / k)` with k = 1 and 3. At 1.12 the last
# bit is amplified until the weights have nothing in common; at 0.96 the step also exceeds 2 / sharpness, and
# the bit is forgotten.

# %%
figure, axes = plt.subplots()
rates, distances = (0.96, 1.12), []
nonlinear_pde.simulate(
    image,
    kernel,
    learning_rates=[rate for rate in rates for _ in range(2)],
    weight_decays=1.25,
    num_steps=150,
    perturbations=[1, 3, 1, 3],
    observe=lambda step, w: distances.append(
        [average_relative_l1(w[0], w[1]), average_relative_l1(w[2], w[3])]
    ),
)
axes.semilogy(distances, label=[f"learning rate {rate}" for rate in rates])
axes.set(xlabel="iteration", ylabel="average relative L1")
axes.legend()

# %% [markdown]
# Why: on this input the network is exactly a map of one number, and its Lyapunov exponent says which rates
# amplify. (At the paper's size the two rates above are 0.06 and 0.07.)

# %%
small = ReducedMap(kernel_size=8, image_size=64, weight_decay=1.25)
for rate in (0.96, 1.12):
    print(f"learning rate {rate}: exponent {float(small.lyapunov_exponent(rate)):+.2f} per step")
