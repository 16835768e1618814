# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # A tour of `chaos`
# Every eigenvalue of the batch Hessian at every step of training, and what those directions do.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from chaos import CGD, LyapunovTracker
from chaos.o2grad import LossSurface
from gdyn_reproduce import data

images, labels = data.load("digits", "train")
x = torch.from_numpy(images).flatten(1).double() / 16
y = torch.from_numpy(labels)
loss, h = torch.nn.CrossEntropyLoss(), 0.1


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10)).double()


def batches(num_steps):
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        rows = torch.randint(len(x), (8,), generator=generator)
        yield x[rows], y[rows]


# %% [markdown]
# The spectrum along training: a few large positive eigenvalues, as many negative ones, and a null space
# that is exact.

# %%
model = network()
surface, optimizer, tracker = LossSurface(model, loss), torch.optim.SGD(model.parameters(), lr=h), None
tracker = LyapunovTracker(surface.n, h=h)
spectra, exponents = {}, []
for step, (xb, yb) in enumerate(batches(200), start=1):
    H = surface.hessian(None, xb, yb)
    optimizer.zero_grad()
    loss(model(xb), yb).backward()
    optimizer.step()
    tracker.update(H)
    if step in (1, 50, 200):
        spectra[step] = H.eigh().values
    if step % 20 == 0:
        exponents.append((step, float(tracker.exponents().max())))

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
for step, values in spectra.items():
    left.plot(np.linspace(0, 1, len(values)), values, label=f"step {step}")
left.set(xlabel="rank (zeros left out)", ylabel="eigenvalue", yscale="symlog")
left.legend()
right.plot(*np.array(exponents).T)
right.set(xlabel="step", ylabel="largest Lyapunov exponent")

# %% [markdown]
# Take the negative directions out of every step, or the positive ones: only one of the two still learns.

# %%
for prune_set in ("neg", "pos"):
    model = network()
    surface, optimizer = LossSurface(model, loss), CGD(model.parameters(), lr=h, prune_set=prune_set)
    for xb, yb in batches(200):
        optimizer.zero_grad()
        loss(model(xb), yb).backward()
        optimizer.step(surface.hessian(None, xb, yb))
    accuracy = float((model(x).argmax(1) == y).double().mean())
    print(f"without {prune_set} directions: accuracy {accuracy:.2f} after 200 steps")
