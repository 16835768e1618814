"""Curvature of data in parts equals that of the whole, or is refused: at special points, too."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from chaos import CGD
from chaos.o2grad import LossSurface

WEIGHTS = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)


def blank_head():
    """Say the same of every sample, so that every weighting of batches gives the same loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    return model


def batch(count=24):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (count,), generator=generator)


def loader(x, y, size=6):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def weighted(output, target):
    return F.cross_entropy(output, target, weight=WEIGHTS)


def masked(output, target):
    kept = target != 1
    return (F.cross_entropy(output, target, reduction="none") * kept).sum() / kept.sum()


def product_by_autograd(model, loss, x, y, v):
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(loss(model(x), y), parameters, create_graph=True)
    along = torch.cat([g.reshape(-1) for g in gradient]) @ v
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(along, parameters)])


@pytest.mark.parametrize("loss", [weighted, masked])
def test_a_weighting_is_seen_where_all_batches_have_the_same_loss(loss):
    with pytest.raises(ValueError, match="neither the mean over samples nor the sum"):
        LossSurface(blank_head(), loss).operator(None, loader(*batch()))


def test_a_weighting_is_seen_at_a_perfect_fit():
    model = nn.Linear(4, 1, bias=False).double()
    x, _ = batch()
    y = model(x).detach()
    y[::5] = torch.nan  # not measured

    def of_measured(output, target):
        known = ~target.isnan()
        return ((output - target.nan_to_num()) ** 2 * known).sum() / known.sum()

    with pytest.raises(ValueError, match="neither the mean over samples nor the sum"):
        LossSurface(model, of_measured).operator(None, loader(x, y))


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=WEIGHTS),
        lambda o, t: F.cross_entropy(o, t),
        lambda o, t: F.cross_entropy(o, t, reduction="sum"),
    ],
    ids=["class weights", "mean", "sum"],
)
def test_what_adds_up_is_the_full_batch_there(loss):
    model, (x, y) = blank_head(), batch()
    v = torch.randn(51, dtype=torch.float64)
    product = LossSurface(model, loss).operator(None, loader(x, y)).matvec(v)
    torch.testing.assert_close(product, product_by_autograd(model, loss, x, y, v), rtol=1e-12, atol=1e-14)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.LSTM(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.layer(x)[0]).transpose(1, 2)


def test_samples_that_are_no_rows_have_no_hessian_of_their_own():
    x, y = torch.randn(6, 6, 4), torch.randint(3, (6, 6))  # time first, as many steps as samples
    with pytest.raises(ValueError, match="gradients of single samples do not add up"):
        LossSurface(Recurrent(), nn.CrossEntropyLoss()).hessian_per_sample(None, x, y)


def test_samples_of_a_loss_that_weighs_them_have_no_hessian_of_their_own():
    with pytest.raises(ValueError, match="neither the mean over samples nor the sum"):
        LossSurface(blank_head(), masked).hessian_per_sample(None, *batch())


def test_hessians_of_samples_have_the_batch_as_their_mean():
    model, (x, y) = blank_head(), batch(6)
    loss = nn.CrossEntropyLoss()
    v = torch.randn(51, dtype=torch.float64)
    each = [H.matvec(v) for H in LossSurface(model, loss).hessian_per_sample(None, x, y)]
    mean = torch.stack(each).mean(0)
    torch.testing.assert_close(mean, product_by_autograd(model, loss, x, y, v), rtol=1e-10, atol=1e-12)


def test_the_hessian_of_a_weighted_sample_is_that_of_a_batch_of_one():
    model, (x, y) = blank_head(), batch(6)
    loss = nn.CrossEntropyLoss(weight=WEIGHTS)
    v = torch.randn(51, dtype=torch.float64)
    each = torch.stack([H.matvec(v) for H in LossSurface(model, loss).hessian_per_sample(None, x, y)])
    for i, product in enumerate(each):
        alone = product_by_autograd(model, loss, x[i : i + 1], y[i : i + 1], v)
        torch.testing.assert_close(product, alone, rtol=1e-10, atol=1e-12)
    whole = product_by_autograd(model, loss, x, y, v)
    torch.testing.assert_close((WEIGHTS[y] @ each) / WEIGHTS[y].sum(), whole, rtol=1e-10, atol=1e-12)


def overlapping(kind):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    if kind == "the same data":
        model[1].weight.data = model[0].weight.data
    elif kind == "some rows":
        model[1].weight.data = torch.cat([model[0].weight.data, torch.zeros(2, 4)])
        model[0].weight.data = model[1].weight.data[2:]
        model[1].weight.data = model[1].weight.data[:4]
    elif kind == "entries of one":
        model[0].bias = nn.Parameter(torch.zeros(1).expand(4))
    elif kind == "a buffer":
        model.register_buffer("row", model[0].weight.data[1])
    return model


@pytest.mark.parametrize("kind", ["the same data", "some rows", "entries of one", "a buffer"])
def test_parameters_that_share_memory_are_refused(kind):
    with pytest.raises(ValueError, match="share memory"):
        LossSurface(overlapping(kind), nn.CrossEntropyLoss())
    if kind != "a buffer":
        with pytest.raises(ValueError, match="share memory"):
            CGD(overlapping(kind).parameters(), lr=0.1)


def test_neighbours_in_one_memory_and_tied_parameters_are_not():
    whole = torch.randn(4, 12)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    for i, layer in enumerate(model):
        layer.weight = nn.Parameter(whole[:, 4 * i : 4 * i + 4])
    assert LossSurface(model, nn.CrossEntropyLoss()).n == 60
    model[1].weight = model[0].weight
    assert LossSurface(model, nn.CrossEntropyLoss()).n == 44
    assert LossSurface(nn.LSTM(4, 5, 2), nn.MSELoss()).n == 460


def test_a_svd_that_does_not_converge_is_done_by_another_driver(monkeypatch):
    from chaos.o2grad.singular import thin_svd

    A = torch.randn(7, 3)
    exact = torch.linalg.svd(A.double(), full_matrices=False)

    def gives_up(*_, **__):
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "svd", gives_up)
    U, sigma, Vt = thin_svd(A)
    assert U.dtype is sigma.dtype is torch.float32
    torch.testing.assert_close(sigma.double(), exact.S, rtol=1e-6, atol=0)
    torch.testing.assert_close(U @ sigma.diag() @ Vt, A, rtol=1e-5, atol=1e-6)


class Noisy(torch.utils.data.Dataset):
    """Draws from a generator of its own."""

    def __init__(self, kind):
        self.x, self.y = batch()
        self.rng = np.random.default_rng(0) if kind == "numpy" else random.Random(0)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        noise = self.rng.standard_normal() if isinstance(self.rng, np.random.Generator) else self.rng.random()
        return self.x[i] + noise, self.y[i]


@pytest.mark.parametrize("kind", ["numpy", "python", "sampler"])
def test_a_loader_goes_on_as_if_nobody_had_read_it(kind):
    def made():
        data = torch.utils.data.TensorDataset(*batch()) if kind == "sampler" else Noisy(kind)
        generator = torch.Generator().manual_seed(3)
        sampler = torch.utils.data.RandomSampler(data, generator=generator)
        return torch.utils.data.DataLoader(data, batch_size=6, sampler=sampler)

    read, untouched = made(), made()
    operator = LossSurface(blank_head(), nn.CrossEntropyLoss()).operator(None, read)
    v = torch.randn(51, dtype=torch.float64)
    first = operator.matvec(v)
    assert torch.equal(operator.matvec(v), first), "each pass yields the same"
    for (x, y), (expected, targets) in zip(read, untouched, strict=True):
        assert torch.equal(x, expected)
        assert torch.equal(y, targets)
