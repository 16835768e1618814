"""Single products read the model where it stands: what changes between them counts, and nothing moves."""

from __future__ import annotations

import copy
import sys
import threading

import pytest
import torch
from gauntlet import classes, draw, mlp
from torch import nn
from torch.utils.checkpoint import checkpoint

from chaos.o2grad import LossSurface

CE = nn.CrossEntropyLoss()


def by_autograd(model, loss, x, y, v):
    """The product from the module itself."""
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(loss(model(x), y), parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    parts = torch.autograd.grad(flat @ v, parameters, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in parts])


class Last(nn.Module):
    """The last output of a recurrent layer."""

    def forward(self, outputs):
        return outputs[0][:, -1]


LAYERS = {
    "linear": lambda: (nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), (4, 5)),
    "in place": lambda: (nn.Sequential(nn.ELU(inplace=True), nn.Linear(5, 4), nn.Tanh()), (4, 5)),
    "batch norm": lambda: (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), (4, 5)),
    "instance norm": lambda: (
        nn.Sequential(nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3, True, track_running_stats=True), nn.Flatten()),
        (4, 2, 5),
    ),
    "recurrent": lambda: (nn.Sequential(nn.GRU(5, 3, batch_first=True), Last()), (4, 6, 5)),
    "recurrent alone": lambda: (nn.GRU(5, 3, batch_first=True), (4, 6, 5)),
}


def picture(model):
    """Every attribute of every module and what it holds, by identity; every tensor by value as well."""
    seen = []
    for module in model.modules():
        for key, value in vars(module).items():
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            seen.append((key, id(value), [id(part) for part in inner]))
    return seen, [(t._version, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]


@pytest.mark.parametrize("name", LAYERS)
def test_a_product_leaves_every_attribute_and_tensor_as_it_was(name):
    torch.manual_seed(0)
    model, shape = LAYERS[name]()
    model.double()
    x, y = draw(*shape), classes(4)
    loss = CE if name != "recurrent alone" else lambda output, y: CE(output[0][:, -1], y)
    v = torch.linspace(-1, 1, sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    surface, given = LossSurface(model, loss), (x.clone(), y.clone())
    model(x.clone())  # a recurrent layer notes its weights at its first call
    before, state = picture(model), torch.random.get_rng_state()
    found = surface.hvp(None, x, y, v)
    after = picture(model)
    assert before[0] == after[0]
    for (version, value), (version_now, value_now) in zip(before[1], after[1], strict=True):
        assert version == version_now
        assert torch.equal(value, value_now)
    assert torch.equal(x, given[0])
    assert torch.equal(y, given[1])
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert (found - by_autograd(model, loss, x.clone(), y, v)).abs().max() < 1e-13


def other_layer(model):
    model[0] = nn.Linear(5, 4).double()


def other_data(model):
    model[0].weight.data = model[0].weight.data.flip(0)


def other_parameter(model):
    model[2].weight = nn.Parameter(model[2].weight.detach().flip(0))


def other_activation(model):
    model[1] = nn.Softplus()


def a_hook(model):
    model[1].register_forward_hook(lambda module, inputs, output: output.square())


def a_forward_of_its_own(model):
    model[1].forward = torch.sin


def a_step(model):
    with torch.no_grad():
        model[0].weight.mul_(0.5)


CHANGES = (other_layer, other_data, other_parameter, other_activation, a_hook, a_forward_of_its_own, a_step)


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_between_two_products_counts(change):
    torch.manual_seed(0)
    model, x, y = mlp(), draw(4, 5), classes(4)
    surface = LossSurface(model, CE)
    v = torch.linspace(-1, 1, surface.n, dtype=torch.float64)
    first = surface.hvp(None, x, y, v)
    change(model)
    expected = by_autograd(model, CE, x, y, v)
    assert (first - expected).abs().max() > 1e-6
    assert (surface.hvp(None, x, y, v) - expected).abs().max() < 1e-13


def test_parameters_that_cannot_be_differentiated_where_they_stand():
    torch.manual_seed(0)
    with torch.inference_mode():
        frozen = mlp()
    x, y, v = draw(4, 5), classes(4), torch.linspace(-1, 1, 39, dtype=torch.float64)
    plain = mlp()
    with torch.no_grad():
        for p, q in zip(plain.parameters(), frozen.parameters(), strict=True):
            p.copy_(q)
    expected = by_autograd(plain, CE, x, y, v)
    assert (LossSurface(frozen, CE).hvp(None, x, y, v) - expected).abs().max() < 1e-13
    half = LossSurface(plain.float(), CE, dtype=torch.float64).hvp(None, x, y, v)
    assert half.dtype == torch.float64
    assert (half - expected).abs().max() < 1e-5
    surface = LossSurface(plain, CE)
    plain[0] = nn.Linear(5, 5)
    with pytest.raises(ValueError, match=r"params has '0\.weight' as \(5, 5\); the model has \(4, 5\)"):
        surface.hvp(None, x, y, v)
    plain[0] = nn.Linear(5, 4)
    plain[2].bias.data[1] = torch.inf
    with pytest.raises(ValueError, match="params holds non-finite values"):
        surface.hvp(None, x.float(), y, v)


@pytest.mark.parametrize("refill", ["in place", "behind autograd's back"])
def test_an_operator_keeps_the_batch_that_it_was_made_for(refill):
    """The kept graph used the caller's memory, and gave a symmetric mix of two batches."""
    model, x, y = mlp(), draw(9, 5), torch.arange(9) % 3
    operator = LossSurface(model, CE).operator(None, (x, y))
    identity = torch.eye(operator.n)
    before = operator.matvec(identity)
    if refill == "in place":
        x.mul_(2)
    else:
        x.numpy()[:] *= 2
    torch.testing.assert_close(operator.matvec(identity), before)


def test_an_operator_keeps_the_parameters_that_it_holds_fixed():
    model, x, y = mlp(), draw(9, 5), torch.arange(9) % 3
    operator = LossSurface(model, CE, layers=["0"]).operator(None, (x, y))
    identity = torch.eye(operator.n)
    before = operator.matvec(identity)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    torch.testing.assert_close(operator.matvec(identity), before)


class Scaled(nn.Module):
    """Reads a buffer, at once or when a checkpoint runs it again."""

    def __init__(self, *, again):
        super().__init__()
        self.inner, self.again = mlp(), again
        self.register_buffer("scale", torch.tensor(1.5, dtype=torch.float64))

    def forward(self, x):
        if not self.again:
            return self.inner(x) * self.scale
        return checkpoint(lambda x: self.inner(x) * self.scale, x, use_reentrant=False)


@pytest.mark.parametrize("again", [False, True], ids=["once", "checkpoint"])
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton", "fisher"])
def test_an_operator_is_of_the_time_when_it_was_made(kind, again):
    """Not of its first product, although the graph of a single batch is kept."""
    model, x, y = Scaled(again=again), draw(9, 5), torch.arange(9) % 3
    surface = LossSurface(model, CE, layers=["inner.0"])
    first, rest = model.inner[0], copy.deepcopy(model.inner[1:])

    def outputs(w):
        return rest(x @ w[:20].view(4, 5).T + w[20:]) * 1.5

    w = torch.cat([first.weight.detach().reshape(-1), first.bias.detach()])
    A = torch.func.hessian(lambda z: CE(z.view(9, 3), y))(outputs(w).reshape(-1))
    J = torch.func.jacrev(lambda w: outputs(w).reshape(-1))(w)
    each = torch.func.jacrev(lambda w: nn.functional.cross_entropy(outputs(w), y, reduction="none"))(w)
    H = torch.func.hessian(lambda w: CE(outputs(w), y))(w)
    dense = {"hessian": H, "gauss_newton": J.T @ A @ J, "fisher": each.T @ each / 9}[kind].detach()
    v = torch.linspace(-1, 1, surface.n).double()
    operator = surface.operator(None, (x, y), kind)
    with torch.no_grad():
        x.mul_(2)
        y.fill_(0)
        model.scale.mul_(3)
        model.inner[2].weight.zero_()
    for _ in range(2):
        torch.testing.assert_close(operator.matvec(v), dense @ v)


def test_a_weight_tied_by_an_attribute_is_refused():
    model = nn.Sequential(nn.Linear(5, 3, bias=False), nn.Tanh(), nn.Linear(3, 5, bias=False))
    tied = model[0].weight.t()
    del model[2].weight
    model[2].weight = tied
    x = draw(4, 5)
    surface = LossSurface(model, nn.MSELoss())
    v = torch.ones(surface.n)
    for call in (
        lambda: surface.hvp(None, x, x, v),
        lambda: surface.hessian(None, x, x),
        lambda: surface.operator(None, (x, x)).matvec(v),
    ):
        with pytest.raises(ValueError, match=r"reaches parameter '0.weight' by a reference of its own"):
            call()


def test_a_hook_that_is_added_later_is_looked_at():
    model, x, y = mlp(), draw(9, 5), torch.arange(9) % 3
    surface = LossSurface(model, CE)
    v = torch.ones(surface.n)
    surface.hvp(None, x, y, v)
    model[1].register_forward_hook(lambda module, inputs, output: output * output.detach())
    with pytest.raises(ValueError, match="in another way than its derivative says"):
        surface.hvp(None, x, y, v)


def test_surfaces_on_one_model_take_turns_in_threads():
    model, x, y = mlp(), draw(9, 5), torch.arange(9) % 3
    own = list(model.parameters())
    surfaces = [LossSurface(model, CE), LossSurface(model, nn.CrossEntropyLoss(reduction="sum"))]
    v = torch.ones(surfaces[0].n)
    expected = [surface.hvp(None, x, y, v) for surface in surfaces]
    found = [[], []]

    def work(index):
        for _ in range(50):
            found[index].append(surfaces[index].hvp(None, x, y, v))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert all(p is q for p, q in zip(own, model.parameters(), strict=True))
    for products, right in zip(found, expected, strict=True):
        assert len(products) == 50
        for product in products:
            torch.testing.assert_close(product, right)
