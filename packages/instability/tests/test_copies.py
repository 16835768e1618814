import numpy as np
import pytest
import torch
from torch import nn

from instability.copies import Copies
from instability.perturbed_sgd import PerturbedSGD


def network(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 3)
    )


def losses(steps, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(8, 4, generator=generator, dtype=dtype)
        y = torch.randint(0, 3, (8,), generator=generator)
        yield lambda model, x=x, y=y: nn.functional.cross_entropy(model(x), y)


OPTIMIZERS = {
    "perturbed": lambda p: PerturbedSGD(p, lr=0.5, momentum=0.9),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
}


@pytest.fixture(params=list(OPTIMIZERS))
def optimizer_fn(request):
    return OPTIMIZERS[request.param]


def test_controls_stay_and_perturbed_copies_leave(optimizer_fn):
    copies = Copies(network(), optimizer_fn, (1, 1, 2, 4, 3))
    for loss_of in losses(30):
        copies.step(loss_of)
    divergence = copies.divergence()
    assert (copies.controls, copies.perturbed) == ([1, 2, 3], [4])
    assert divergence[:4] == [0, 0, 0, 0]
    assert divergence[4] > 0


def test_random_layers_draw_the_same_numbers():
    copies = Copies(network(dropout=0.5), OPTIMIZERS["perturbed"], (1, 1))
    for loss_of in losses(10):
        copies.step(loss_of)
    assert copies.divergence() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_arrays_restore_the_state_bit_for_bit(optimizer_fn, dtype):
    def fresh():
        return Copies(network().to(dtype), optimizer_fn, (1, 3))

    steps = list(losses(12, dtype))
    whole, first, second = fresh(), fresh(), fresh()
    for loss_of in steps:
        whole.step(loss_of)
    for loss_of in steps[:5]:
        first.step(loss_of)
    second.load_arrays(first.arrays())
    for loss_of in steps[5:]:
        second.step(loss_of)
    for i in range(2):
        np.testing.assert_array_equal(second.weights(i), whole.weights(i))


def test_layer_selection_and_its_message():
    copies = Copies(network(), OPTIMIZERS["sgd"], (1,))
    assert copies.weights(0, "0.weight").shape == (64,)
    assert copies.weights(0).shape == (sum(p.numel() for p in copies.models[0].parameters()),)
    with pytest.raises(ValueError, match=r"Unknown layer '0.weigth' among 6. Close names: 0.weight"):
        copies.weights(0, "0.weigth")


@pytest.mark.parametrize(
    ("ks", "message"),
    [((), "perturbations is empty"), ((3, 1), "must start with the baseline"), ((1, 0), "int >= 1")],
)
def test_bad_perturbations(ks, message):
    with pytest.raises(ValueError, match=message):
        Copies(network(), OPTIMIZERS["sgd"], ks)


def test_the_given_model_is_left_alone():
    model = network()
    before = [p.clone() for p in model.parameters()]
    Copies(model, OPTIMIZERS["sgd"], (1,)).step(next(losses(1)))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_arrays_hold_buffers_that_no_state_dict_does_and_refuse_lists():
    model = network()
    model.register_buffer("count", torch.zeros(1), persistent=False)
    copies = Copies(model, OPTIMIZERS["sgd"], (1,))
    arrays = copies.arrays()
    copies.models[0].count += 5
    copies.load_arrays(arrays)
    assert copies.models[0].count.item() == 0
    copies = Copies(network(), lambda p: torch.optim.LBFGS(p), (1,))
    copies.step(next(losses(1)))
    with pytest.raises(TypeError, match=r"the optimiser keeps .*: no array"):
        copies.arrays()
