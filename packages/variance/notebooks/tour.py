# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # A tour of `variance`
# How noisy is the gradient along a training run, and does grouping the examples by their gradients help?

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from gdyn_reproduce import data
from variance.gradient_clustering import cluster
from variance.measurement import measure_model
from variance.per_example import gradients
from variance.sampling import stratified_variance

images, labels = data.load("digits", "train")
x, y = torch.from_numpy(images).flatten(1).float() / 16, torch.from_numpy(labels)
loss = nn.functional.cross_entropy
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

# %%
rows = []
for step in range(301):
    if step % 60 == 0:
        found = measure_model(model, loss, x, y, batch_size=32)
        G = gradients(model, loss, x, y)
        groups = cluster(model, loss, x, y, 16, iterations=4).assignment
        alone = torch.zeros(len(x), dtype=torch.int64)
        plain = stratified_variance(G, alone, draws_per_cluster=32)
        grouped = stratified_variance(G, groups, draws_per_cluster=2)
        rows.append((step, found["noise_scale"], found["noise_scale_se"], float(grouped / plain)))
    batch = torch.randint(len(x), (32,))
    optimizer.zero_grad()
    loss(model(x[batch]), y[batch]).backward()
    optimizer.step()

step, scale, error, ratio = np.array(rows).T
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
left.errorbar(step, scale, error)
left.set(xlabel="step", ylabel="noise scale (examples)")
right.plot(step, ratio)
right.set(xlabel="step", ylabel="variance, grouped over plain", ylim=(0, 1.1))
print("variance with 16 groups over that of plain batches:", ratio.round(2))
