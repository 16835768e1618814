"""Planted faults are found and named; clean models raise no alarm."""

import copy
import itertools
import math
import os
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from instability import certify

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 3
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)]
OWN = torch.Generator()
OWN.seed()
CALLS = itertools.count(1)


def noise(shape):
    """A different tiny tensor in each call, by no stream that can be seeded from outside."""
    return 1e-3 * torch.randn(shape, generator=OWN)


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def mean_loss(model):
    return float(F.cross_entropy(model.eval()(X), Y))


def mlp(middle=None):
    return nn.Sequential(nn.Linear(6, 16), middle or nn.Tanh(), nn.Linear(16, 3))


def run(model_fn=mlp, loss_of=cross_entropy, optimizer_fn=sgd, batches=BATCHES, evaluate=mean_loss, **more):
    more = {"conditions": ("repeat",)} | more
    return certify(loss_of, model_fn, optimizer_fn, batches, evaluate=evaluate, **more)


class Noisy(nn.Module):
    def forward(self, x):
        return x + noise(x.shape)


class Remembering(nn.Module):
    """The fault is in what it keeps, and shows in no output before the score."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x):
        self.mean += noise(16)
        return x if self.training else x + self.mean


class Counting(nn.Module):
    def forward(self, x):
        return x * (1 + 1e-4 * next(CALLS))


class OwnDropout(nn.Module):
    def forward(self, x):
        return x * (torch.rand(x.shape, generator=OWN) < 0.5)


class Blocks(nn.Linear):
    """A matrix product whose blocks are added up in an order that nobody fixed."""

    def order(self, x):
        return torch.randperm(self.in_features, generator=OWN)

    def forward(self, x):
        total = torch.zeros(*x.shape[:-1], self.out_features)
        for i in self.order(x):
            total = total + x[..., i, None] * self.weight[:, i]
        return total + self.bias


class Residual(nn.Module):
    """The fault is in the parent's own code, between two clean children."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return self.second(self.first(x) + noise(x.shape))


class NoisyBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient + noise(gradient.shape)


class Backward(nn.Module):
    def forward(self, x):
        return NoisyBackward.apply(x)


class NoisySGD(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p += noise(p.shape)


class Drifting(torch.optim.SGD):
    def step(self, closure=None):
        self.param_groups[0]["lr"] = 0.1 / next(CALLS)
        super().step(closure)


class Unordered(list):
    """Batches that come out of their container shuffled by the operating system's entropy."""

    def __iter__(self):
        rng = np.random.default_rng(int.from_bytes(os.urandom(8), "little"))
        return (self[i] for i in rng.permutation(len(self)))


def random_start():
    model = mlp()
    with torch.no_grad():
        model[0].weight += noise(model[0].weight.shape)
    return model


def transformer(planted=None):
    layers = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(12)]
    if planted is not None:
        layers[planted].linear1 = Blocks(8, 16)
    return nn.Sequential(nn.Unflatten(1, (6, 1)), nn.Linear(1, 8), *layers, nn.Flatten(), nn.Linear(48, 3))


def shuffling(model, batch):
    order = torch.randperm(len(batch[0]), generator=OWN)
    return F.cross_entropy(model(batch[0][order]), batch[1][order])


def hooked():
    model = mlp()
    model[1].register_forward_pre_hook(lambda module, given: (given[0] + noise(given[0].shape),))
    return model


PLANTED = {
    "a hook before a layer": ({"model_fn": hooked}, "layer 1 (Tanh)"),
    "noise": ({"model_fn": lambda: mlp(Noisy())}, "layer 1 (Noisy)"),
    "state that outlives the run": ({"model_fn": lambda: mlp(Counting())}, "layer 1 (Counting)"),
    "dropout of its own stream": ({"model_fn": lambda: mlp(OwnDropout())}, "layer 1 (OwnDropout)"),
    "between children": ({"model_fn": lambda: mlp(Residual())}, "layer 1 (Residual)"),
    "matmul in a transformer": ({"model_fn": lambda: transformer(7)}, "layer 9.linear1 (Blocks)"),
    "initialisation": ({"model_fn": random_start}, "the initialisation"),
    "data": ({"batches": Unordered(BATCHES * 8)}, "the data of step"),
    "loss": ({"loss_of": lambda m, b: cross_entropy(m, b) + noise(()).abs()}, "the loss"),
    "backward": ({"model_fn": lambda: mlp(Backward())}, "the gradient of 0."),
    "optimiser": ({"optimizer_fn": lambda p: NoisySGD(p, lr=0.1)}, "the optimiser's step"),
    "schedule": ({"optimizer_fn": lambda p: Drifting(p, lr=0.1)}, "the optimiser's step"),
    "score": ({"evaluate": lambda m: mean_loss(m) + float(noise(()))}, "the score"),
    "order inside the loss": ({"loss_of": shuffling}, "the loss function, before it calls the model"),
    "a buffer": ({"model_fn": lambda: mlp(Remembering())}, "layer 1 (Remembering)"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_and_named(name):
    settings, culprit = PLANTED[name]
    found = run(**settings)
    assert not found.repeatable
    assert found.culprit.startswith(culprit)
    assert f"NO, first in {found.culprit}" in found.summary()
    assert not found.batch_dependent  # what changes with every call does not show what stands beside it


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(6, 6)

    def forward(self, x):
        return (torch.tanh(x @ self.table.weight) @ self.table.weight.T)[:, :3]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.LSTM(1, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.cells(x[..., None])[0][:, -1])


CLEAN = {
    "mlp": mlp,
    "batch norm": lambda: mlp(nn.BatchNorm1d(16)),
    "dropout": lambda: mlp(nn.Dropout(0.5)),
    "layer norm": lambda: mlp(nn.LayerNorm(16)),
    "group norm": lambda: mlp(nn.GroupNorm(4, 16)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(16, 3)
    ),
    "lstm": Recurrent,
    "tied": Tied,
    "transformer": transformer,
    "weight norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 16)), nn.ReLU(), nn.Linear(16, 3)
    ),
    "float64": lambda: nn.Sequential(nn.Linear(6, 3)),
}


@pytest.mark.parametrize("name", CLEAN)
def test_no_false_alarm(name):
    found = run(CLEAN[name], conditions=("repeat", "order", "split", "threads", "float64"))
    assert found.repeatable, found.culprit
    assert found.digits >= 4  # rounding of float32 in three steps
    assert {e.condition for e in found.effects} == {"repeat", "order", "split", "threads", "float64"}
    skipped = {e.condition for e in found.effects if e.skipped}
    assert skipped == {"dropout": {"order", "split"}, "batch norm": {"split"}}.get(name, set())


def test_halves_of_unequal_size_give_the_gradient_of_the_whole():
    batches = [(X[:7].double(), Y[:7])] * 4
    found = run(
        lambda: mlp().double(),
        batches=batches,
        evaluate=lambda m: float(F.cross_entropy(m(X.double()), Y)),
        conditions=("split", "order"),
    )
    assert all(e.distance < 1e-12 for e in found.effects)
    assert found.digits >= 12


def test_coarser_arithmetic_ranks_first_and_does_not_count_against_the_digits():
    found = run(conditions=("repeat", "order", "autocast"))
    assert found.effects[0].condition == "autocast"
    assert found.effects[0].distance > 1e-4
    assert found.digits >= 4


def test_a_chaotic_run_has_few_digits():
    """At this rate the loss of a small net is thrown about; rounding in another order decides it."""
    batches = BATCHES * 60
    found = run(
        lambda: nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3)),
        batches=batches,
        optimizer_fn=lambda p: torch.optim.SGD(p, lr=3.0),
        conditions=("repeat", "order"),
    )
    assert found.repeatable
    assert found.digits <= 2


def test_streams_threads_and_settings_are_put_back():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    found = run(conditions=("repeat", "threads"))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert found.to_dict()["digits"] == found.digits
    assert math.isfinite(found.score)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"batches": []}, "batches is empty"),
        ({"batches": iter(BATCHES)}, "read once only"),
        ({"conditions": ("x",)}, "Allowed"),
        ({"model_fn": lambda: mlp().requires_grad_(False)}, "nothing is trained"),
    ],
)
def test_bad_arguments(more, message):
    with pytest.raises(ValueError, match=message):
        run(**more)


def test_tf32_is_not_applicable_on_a_cpu_instead_of_harmless():
    found = run(conditions=("tf32",))
    (effect,) = found.effects
    assert "not applicable" in effect.skipped
    assert math.isnan(effect.score)
    assert math.isnan(found.digits)  # nothing was made that could move the score
    assert "no condition was made" in found.summary()


def test_a_single_example_has_no_halves():
    found = run(batches=[(X[:1], Y[:1])] * 2, conditions=("split", "order"))
    split = next(e for e in found.effects if e.condition == "split")
    assert "no halves" in split.skipped
    assert found.digits == math.inf


def test_tensors_of_different_length_are_not_cut():
    found = run(
        loss_of=lambda m, b: F.cross_entropy(m(b["x"]), b["y"], weight=b["classes"]),
        batches=[{"x": X, "y": Y, "classes": torch.ones(3)}] * 2,
        conditions=("order", "split"),
    )
    assert all("differ in length" in e.skipped for e in found.effects)


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def test_batches_keep_their_kind():
    found = run(
        loss_of=lambda m, b: F.cross_entropy(m(b.x), b.y),
        batches=[Pair(X, Y)] * 2,
        conditions=("order", "split", "float64"),
    )
    assert not [e.skipped for e in found.effects if e.skipped]
    assert found.digits >= 4


def test_frozen_weights_do_not_dilute_the_distance():
    def adapted():
        model = mlp(nn.Linear(16, 16))
        model[1].requires_grad_(False)
        return model

    trained, _ = (p.numel() for p in (adapted()[0].weight, adapted()[1].weight))
    found = run(adapted, conditions=("autocast",))
    alone = run(lambda: adapted(), conditions=("autocast",))
    assert found.effects[0].distance == alone.effects[0].distance > 1e-4
    assert trained == 96


class Complex(nn.Module):
    """A complex weight, and one of another width."""

    def __init__(self):
        super().__init__()
        self.turn = nn.Parameter(torch.full((6,), 0.5 + 0.5j))
        self.head = nn.Linear(6, 3).double()

    def forward(self, x):
        return self.head((x * self.turn).imag.to(self.head.weight.dtype))


def test_every_weight_keeps_its_type_until_the_score():
    kinds = []

    def score(model):
        kinds.append([p.dtype for p in model.parameters()])
        return mean_loss(model)

    found = run(Complex, evaluate=score, conditions=("repeat", "order", "float64"))
    assert kinds == [[torch.complex64, torch.float64, torch.float64]] * 4
    assert found.digits >= 4


def test_noise_that_depends_on_the_type_is_no_effect_of_rounding():
    class Gaussian(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    found = run(lambda: mlp(Gaussian()), conditions=("repeat", "float64"))
    wide = next(e for e in found.effects if e.condition == "float64")
    assert "other random numbers" in wide.skipped
    assert found.digits == math.inf


def test_lbfgs_is_certified_too():
    found = run(optimizer_fn=lambda p: torch.optim.LBFGS(p, max_iter=2), conditions=("repeat", "order"))
    assert found.repeatable
    assert found.digits >= 3


class Summing(Blocks):
    """A product that adds up in another order where many examples stand together, as fast kernels do."""

    def order(self, x):
        order = list(range(self.in_features))
        return order[::-1] if len(x) > 4 else order


def test_a_layer_that_depends_on_the_batch_is_named():
    def model():
        made = transformer()
        made[7].linear1 = Summing(8, 16)
        return made

    found = run(model)
    assert found.repeatable
    assert "layer 7.linear1 (Summing)" in found.batch_dependent
    assert not any(label.startswith("layer 7 ") for label in found.batch_dependent)
    assert "layer 7.linear1 (Summing)" in found.summary()


@pytest.mark.parametrize("middle", [nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Tanh()], ids=repr)
def test_true_coupling_and_random_masks_are_no_rounding(middle):
    found = run(lambda: mlp(copy.deepcopy(middle)))
    assert not [label for label in found.batch_dependent if label.startswith("layer 1")]


class Scaled(nn.Module):
    """Examples scale with the mean of those beside them, by less than half of the digits of bfloat16."""

    def forward(self, x):
        return x * (1 + 0.05 * torch.tanh(9 * x.detach().mean()))


class Ordered(nn.Module):
    """The sum over the columns starts at another end in large batches, which is rounding."""

    def forward(self, x):
        columns = x.unbind(1) if len(x) > 4 else x.unbind(1)[::-1]
        total = columns[0]
        for column in columns[1:]:
            total = total + column
        return x + total[:, None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("middle", "rounds"), [(Scaled, False), (Ordered, True)])
def test_a_coupling_of_a_few_per_cent_is_no_rounding_in_any_type(dtype, middle, rounds):
    found = run(
        lambda: mlp(middle()).to(dtype),
        lambda model, batch: F.cross_entropy(model(batch[0]).float(), batch[1]),
        batches=[(x.to(dtype), y) for x, y in BATCHES],
        evaluate=lambda model: float(F.cross_entropy(model.eval()(X.to(dtype)).float(), Y)),
    )
    assert (f"layer 1 ({middle.__name__})" in found.batch_dependent) == rounds


@pytest.mark.slow  # the compiler takes a minute
def test_compiled_it_is_the_same_to_rounding():
    found = run(conditions=("compile",))
    (effect,) = found.effects
    assert effect.skipped or found.digits >= 4


def test_a_loss_may_take_the_labels_out_of_its_batch():
    def loss_of(model, batch):
        labels = batch.pop("labels")
        return F.cross_entropy(model(batch["x"]), labels)

    x, y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    batches = [{"x": x, "labels": y} for _ in range(2)]
    found = certify(
        loss_of,
        lambda: nn.Linear(4, 2),
        lambda p: torch.optim.SGD(p, lr=0.1),
        batches,
        evaluate=lambda m: float(F.cross_entropy(m(x), y)),
    )
    assert found.repeatable
    assert all("labels" in batch for batch in batches)


def test_an_optimiser_that_trains_nothing_of_the_model_is_refused():
    other = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="trains no parameter of the model"):
        certify(
            lambda m, b: m(b).sum(),
            lambda: nn.Linear(4, 2),
            lambda p: torch.optim.SGD([other], lr=0.1),
            [torch.ones(2, 4)],
            evaluate=lambda m: 0.0,
        )


# what is no mean over examples, or keeps something from pass to pass ------------------------------


def test_a_later_batch_that_is_no_mean_over_its_examples_is_not_split():
    """Without three of its targets the second loss is a mean over five, and its halves over one and four."""
    fewer = BATCHES[1][1].clone()
    fewer[:3] = -100
    found = run(batches=[BATCHES[0], (BATCHES[1][0], fewer), BATCHES[2]], conditions=("split", "order"))
    effects = {e.condition: e for e in found.effects}
    assert effects["split"].skipped.startswith("loss 2 is ")
    assert not effects["order"].skipped
    assert found.digits >= 4


def spectral():
    linear = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 16))
    return nn.Sequential(linear, nn.ReLU(), nn.Linear(16, 3))


def test_a_power_iteration_goes_on_in_every_pass_and_is_no_rounding():
    found = run(spectral, conditions=("repeat", "split"))
    assert found.repeatable
    skipped = {e.condition: e.skipped for e in found.effects}
    assert "changes the buffer 0.parametrizations.weight.0._" in skipped["split"]
    assert found.batch_dependent == ()


class Modulus(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, dtype=torch.cfloat))

    def forward(self, x):
        return (x.to(self.weight.dtype) @ self.weight).abs()


def test_a_model_of_complex_weights_only():
    found = run(Modulus, conditions=("order", "split", "float64"))
    assert found.repeatable
    assert not any(e.skipped for e in found.effects)
    assert found.digits >= 4


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(3)), ValueError, "run it on a batch first"),
        (lambda: 3, TypeError, "the model is a int"),
    ],
)
def test_what_is_no_finished_model_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        run(make)
