"""Every model of the gauntlet agrees with plain autograd or is refused by name, and nothing of it moves."""

from __future__ import annotations

import copy
import random
import warnings

import numpy as np
import pytest
import torch
from gauntlet import CASES, LanguageModel, classes, draw, mlp
from torch import nn
from torch.nn import functional as F

from chaos.o2grad import LossSurface
from chaos.o2grad.batches import call, tensors
from chaos.o2grad.exact import ExactHessian

EXACT_TO = 1e-9  # sums of the same float64 terms in another order; entries are of order one
REFUSED = [name for name, make in CASES.items() if make().refused]
EXACT = [name for name in CASES if name not in REFUSED]

pytestmark = pytest.mark.filterwarnings("ignore:Using a target size", "ignore:The backend .*sweep disagrees")


def made(name):
    torch.manual_seed(0)
    return CASES[name]()


def oracle(case):
    """The Hessian from the module itself, whose buffers, attributes and streams are put back."""
    model = case.model
    saved, streams = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    hooks = [(p, p._backward_hooks) for p in model.parameters()]  # no part of the loss
    for p, _ in hooks:
        p._backward_hooks = None
    for module in model.modules():
        vars(module).update(_backward_hooks={}, _backward_pre_hooks={})
    H = by_differences(case) if case.by_differences else by_autograd(case)
    for module, before in attributes:
        vars(module).clear()
        vars(module).update(before)
    for p, before in hooks:
        p._backward_hooks = before
    model.load_state_dict(saved)
    torch.random.set_rng_state(streams)
    return H


def by_differences(case):
    parameters = list(case.model.parameters())
    start = torch.nn.utils.parameters_to_vector(parameters).detach()

    def gradient(at):
        torch.nn.utils.vector_to_parameters(at, parameters)
        parts = torch.autograd.grad(case.loss(case.model(case.x), case.y), parameters)
        return torch.cat([part.reshape(-1) for part in parts])

    steps = 1e-3 * torch.eye(len(start), dtype=torch.float64)
    near = torch.stack([gradient(start + e) - gradient(start - e) for e in steps]) / 2e-3
    far = torch.stack([gradient(start + 2 * e) - gradient(start - 2 * e) for e in steps]) / 4e-3
    return (4 * near - far) / 3  # the error is of fourth order in the step


def dense(gradient):
    return gradient.to_dense() if gradient.is_sparse else gradient


def by_autograd(case):
    """Row by row, by differentiating the backward pass."""
    model = case.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        x, y = copy.deepcopy((case.x, case.y))
        output = call(model, x)
        value = case.loss(output) if y is None else case.loss(output, y)
        gradients = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
        flat = torch.cat([dense(g).reshape(-1) for g in gradients])
        rows = [
            torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True)
            if g.requires_grad
            else [torch.zeros_like(p) for p in parameters]
            for g in flat
        ]
    return torch.stack([torch.cat([dense(part).reshape(-1) for part in row]) for row in rows])


def state(case):
    """Everything of a model that a user would miss."""
    modules = [part for part in (case.model, case.loss) if isinstance(part, nn.Module)]
    held = [t.detach().clone() for part in modules for t in (*part.parameters(), *part.buffers())]
    return {
        "tensors": held,
        "gradients": [None if p.grad is None else p.grad.clone() for p in case.model.parameters()],
        "attributes": [
            {key: repr(value) for key, value in vars(m).items() if not key.startswith("_")}
            for part in modules
            for m in part.modules()
        ],
        "batch": [t.clone() for t in tensors((case.x, case.y))],
        "random": (torch.random.get_rng_state(), random.getstate(), np.random.get_state()),  # noqa: NPY002
    }


def assert_same(before, after):
    for kind in ("tensors", "batch"):
        assert all(torch.equal(a, b) for a, b in zip(before[kind], after[kind], strict=True))
    for a, b in zip(before["gradients"], after["gradients"], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert before["attributes"] == after["attributes"]
    for a, b in zip(before["random"], after["random"], strict=True):
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b)
        else:
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", EXACT)
def test_hessian_and_products_agree_with_autograd(name):
    case = made(name)
    expected = oracle(case)
    before = state(case)
    surface = LossSurface(case.model, case.loss, **case.kwargs)
    H = surface.hessian(None, case.x, case.y)
    V = torch.randn(surface.n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    one, two = surface.hvp(None, case.x, case.y, V[:, 0]), surface.hvp(None, case.x, case.y, V)
    _, gradient = surface.value_and_gradient(None, case.x, case.y)
    assert_same(before, state(case))
    scale = expected.abs().max().clamp_min(1.0)
    tolerance = 1e-8 if case.by_differences else EXACT_TO
    assert (H.dense() - expected).abs().max() < tolerance * scale
    assert (two - expected @ V).abs().max() < tolerance * scale
    assert (one - expected @ V[:, 0]).abs().max() < tolerance * scale
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    "name", ["checkpointed", "a_hook_on_a_parameter", "buffers_that_share_memory", "a_value_kept_from_before"]
)
def test_another_point_than_that_of_the_model(name):
    """What runs the module again, or keeps something of it, must not find the model's own parameters."""
    case, other = made(name), made(name)
    surface = LossSurface(case.model, case.loss)
    theta = torch.linspace(-0.5, 0.7, surface.n, dtype=torch.float64).sin()
    torch.nn.utils.vector_to_parameters(theta.clone(), other.model.parameters())
    expected, V = oracle(other), torch.eye(surface.n, dtype=torch.float64)[:, :3]
    before = state(case)
    found = surface.hessian(theta, case.x, case.y).dense()
    operator = surface.operator(theta, (case.x, case.y))
    assert_same(before, state(case))
    assert (found - expected).abs().max() < EXACT_TO
    assert (surface.hvp(theta, case.x, case.y, V[:, 2]) - expected[2]).abs().max() < EXACT_TO
    for _ in range(2):  # the second product is one with the graph that was kept
        assert (operator.matvec(V) - expected[:, :3]).abs().max() < EXACT_TO


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("tool", ["hessian", "hvp", "trace"])
def test_what_has_no_curvature_is_refused_by_name(name, tool):
    case = made(name)
    if case.refused == "disagree|no second derivative" and tool != "hessian":
        pytest.skip("one product alone does not show a private random stream")
    before = state(case)
    surface = LossSurface(case.model, case.loss, **case.kwargs)
    calls = {
        "hessian": lambda: surface.hessian(None, case.x, case.y),
        "hvp": lambda: surface.hvp(None, case.x, case.y, torch.ones(surface.n, dtype=torch.float64)),
        "trace": lambda: surface.trace(None, (case.x, case.y), num_samples=2),
    }
    with pytest.raises(ValueError, match=case.refused):
        calls[tool]()
    after = state(case)
    if name == "a_random_stream_of_its_own":
        before["attributes"] = after["attributes"] = []
    assert_same(before, after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_computed_in_float32(dtype):
    torch.manual_seed(0)
    model = mlp().to(dtype)
    x, y = draw(4, 5).to(dtype), classes(4)
    H = LossSurface(model, nn.CrossEntropyLoss()).hessian(None, x, y)
    wide = LossSurface(copy.deepcopy(model).double(), nn.CrossEntropyLoss())
    expected = wide.hessian(None, x.double(), y)
    assert H.core.dtype == torch.float32
    assert (H.dense() - expected.dense()).abs().max() < 1e-6
    assert (H.eigh().all_values() - expected.eigh().all_values()).abs().max() < 1e-5
    assert next(model.parameters()).dtype == dtype


def test_half_precision_is_no_type_of_computation():
    with pytest.raises(ValueError, match=r"dtype is torch.bfloat16; second derivatives are computed in"):
        LossSurface(mlp(), nn.CrossEntropyLoss(), dtype=torch.bfloat16)


def test_a_wrong_fast_result_is_found_and_replaced(monkeypatch):
    """The check of every result by a product of the module itself, with the sweep broken on purpose."""
    case = made("summed_cross_entropy")
    surface = LossSurface(case.model, case.loss)
    right = ExactHessian.by_sweep
    monkeypatch.setattr(ExactHessian, "by_sweep", lambda *args: right(*args) * 1.01)
    with pytest.warns(UserWarning, match="backend sweep disagrees"):
        H = surface.hessian(None, case.x, case.y)
    assert H.backend == "generic"
    assert (H.dense() - oracle(case)).abs().max() < EXACT_TO
    insisting = LossSurface(case.model, case.loss, backend="sweep")
    with pytest.raises(ValueError, match="backend='sweep' does not apply: its result disagrees"):
        insisting.hessian(None, case.x, case.y)


def test_a_vanishing_hessian_is_no_disagreement():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = nn.Linear(3, 1).double()
        H = LossSurface(model, lambda o, t: (o - t).sum()).hessian(None, draw(4, 3), draw(4, 1))
    assert not H.dense().any()


# loaders -----------------------------------------------------------------------------------------

WEIGHTS = torch.tensor([1.0, 5.0, 25.0], dtype=torch.float64)


def token_mean(output, y):
    mask = (y >= 0).to(output)
    return (F.cross_entropy(output, y.clamp_min(0), reduction="none") * mask).sum() / mask.sum()


LOADER_LOSSES = {
    "mean": nn.CrossEntropyLoss(),
    "function": F.cross_entropy,
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "class weights": nn.CrossEntropyLoss(weight=WEIGHTS),
    "ignored": nn.CrossEntropyLoss(ignore_index=0),
    "smoothing and weights": nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.2),
    "callable mean": lambda o, t: F.cross_entropy(o, t),
    "callable sum": lambda o, t: F.cross_entropy(o, t, reduction="sum"),
    "callable with a factor": lambda o, t: 3 * F.cross_entropy(o, t),
}


def batches(x, y, sizes=(8, 3, 6)):
    stops = np.cumsum(sizes)
    return [(x[stop - size : stop], y[stop - size : stop]) for stop, size in zip(stops, sizes, strict=True)]


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton", "fisher"])
@pytest.mark.parametrize("name", LOADER_LOSSES)
def test_a_loader_equals_its_full_batch(name, kind):
    torch.manual_seed(0)
    model, loss = mlp(), LOADER_LOSSES[name]
    x, y = draw(17, 5), torch.randint(3, (17,))
    y[8:11] = torch.tensor([1, 2, 1])  # the middle batch has no ignored target, the first has some
    V = torch.randn(39, 2, dtype=torch.float64)
    surface = LossSurface(model, loss)
    whole = surface.operator(None, (x, y), kind).matvec(V)
    parts = surface.operator(None, batches(x, y), kind).matvec(V)
    assert (parts - whole).abs().max() < 1e-12 * whole.abs().max()
    if kind == "hessian":
        assert (whole - surface.hvp(None, x, y, V)).abs().max() < 1e-12 * whole.abs().max()


def test_elementwise_losses_weigh_by_elements():
    torch.manual_seed(0)
    model = mlp()
    x, y = draw(17, 5), draw(17, 3)
    v = torch.randn(39, dtype=torch.float64)
    for loss in (nn.MSELoss(), nn.HuberLoss(), nn.SmoothL1Loss(), nn.BCEWithLogitsLoss()):
        target = y.sigmoid() if isinstance(loss, nn.BCEWithLogitsLoss) else y
        surface = LossSurface(model, loss)
        whole = surface.hvp(None, x, target, v)
        assert (surface.full_hvp(None, batches(x, target), v) - whole).abs().max() < 1e-12


def test_a_batch_of_ignored_targets_has_no_part_in_the_whole():
    torch.manual_seed(0)
    x, y = draw(12, 5), classes(12)
    y[:4] = 0
    surface = LossSurface(mlp(), nn.CrossEntropyLoss(ignore_index=0))
    v = torch.randn(39, dtype=torch.float64)
    found = surface.full_hvp(None, batches(x, y, (4, 4, 4)), v)
    assert (found - surface.hvp(None, x, y, v)).abs().max() < 1e-14


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (token_mean, "neither the mean over samples nor the sum"),
        (lambda o, t: F.cross_entropy(o, t.clamp_min(0)) ** 2, "neither the mean over samples nor the sum"),
    ],
)
def test_a_loss_that_no_rule_fits_is_refused_over_a_loader(loss, message):
    torch.manual_seed(0)
    x, y = draw(17, 5), torch.randint(-1, 3, (17,))
    surface = LossSurface(mlp(), loss)
    with pytest.raises(ValueError, match=message):
        surface.full_hvp(None, batches(x, y), torch.ones(39))
    assert surface.full_hvp(None, (x, y), torch.ones(39)).shape == (39,)


def test_a_later_batch_is_compared_as_well():
    """The first two batches have equal token counts, the third does not."""
    torch.manual_seed(0)
    x, y = draw(12, 5), classes(12)
    y[9:] = -1
    with pytest.raises(ValueError, match="neither the mean over samples nor the sum"):
        LossSurface(mlp(), token_mean).trace(None, batches(x, y, (4, 4, 4)))


def test_batch_norm_over_a_loader_is_refused():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    x, y = draw(17, 5), classes(17)
    surface = LossSurface(model, nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="the model couples the samples of a batch"):
        surface.top_eigenpairs(None, batches(x, y), 1)


def test_what_a_data_loader_yields_is_a_batch():
    torch.manual_seed(0)
    model, x, y = mlp(), draw(8, 5), classes(8)
    surface = LossSurface(model, nn.CrossEntropyLoss())
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    first = next(iter(loader))
    assert isinstance(first, list)
    one = surface.trace(None, first, num_samples=3)
    assert one.value == pytest.approx(surface.trace(None, (x[:4], y[:4]), num_samples=3).value)
    v = torch.ones(39, dtype=torch.float64)
    assert (surface.full_hvp(None, loader, v) - surface.hvp(None, x, y, v)).abs().max() < 1e-14


def test_a_loader_of_dictionaries():
    torch.manual_seed(0)
    ids = torch.randint(7, (6, 4))
    model = LanguageModel().double()
    ones = torch.ones(6, 4, dtype=torch.float64)
    whole = {"input_ids": ids, "attention_mask": ones, "labels": ids}
    parts = [{key: value[i : i + 2] for key, value in whole.items()} for i in (0, 2, 4)]
    surface = LossSurface(model, lambda output: output.loss)
    v = torch.randn(surface.n, dtype=torch.float64)
    assert (surface.full_hvp(None, parts, v) - surface.hvp(None, whole, None, v)).abs().max() < 1e-13


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "data is empty"),
        ([torch.zeros(3)[0]], TypeError, r"each item must be a pair \(x, y\) or a dictionary"),
        (["text"], TypeError, "data yields str"),
    ],
)
def test_data_that_is_none(data, error, message):
    with pytest.raises(error, match=message):
        LossSurface(mlp(), nn.CrossEntropyLoss()).full_hvp(None, data, torch.ones(39))


class Loader:
    """Yields batches of 4 of 18 samples, in an order of its own each time, the remainder dropped or not."""

    def __init__(self, x, y, generator, *, drop):
        self.x, self.y, self.generator, self.drop = x, y, generator, drop

    def __iter__(self):
        order = torch.randperm(18, generator=self.generator)
        return iter([(self.x[i], self.y[i]) for i in order.split(4) if len(i) == 4 or not self.drop])


def test_a_loader_that_shuffles_is_the_same_data_or_is_refused():
    torch.manual_seed(0)
    x, y, v = draw(18, 5), torch.randint(3, (18,)), torch.ones(39, dtype=torch.float64)
    surface = LossSurface(mlp(), nn.CrossEntropyLoss())
    expected, before = surface.hvp(None, x, y, v), torch.random.get_rng_state()
    for generator in (None, torch.Generator().manual_seed(1)):
        operator = surface.operator(None, Loader(x, y, generator, drop=False))
        for _ in range(2):
            assert (operator.matvec(v) - expected).abs().max() < 1e-14
    fixed = surface.operator(None, Loader(x, y, None, drop=True))  # of the global stream, which is put back
    assert torch.equal(fixed.matvec(v), fixed.matvec(v))
    assert torch.equal(torch.random.get_rng_state(), before)
    own = surface.operator(None, Loader(x, y, torch.Generator().manual_seed(1), drop=True))
    assert torch.equal(own.matvec(v), own.matvec(v))


def test_a_loader_that_yields_other_data_each_time_is_refused():
    x, y, v = draw(18, 5), torch.randint(3, (18,)), torch.ones(39, dtype=torch.float64)
    passes = []

    class Growing:
        def __iter__(self):
            passes.append(len(passes))
            return iter([(x[:9] * len(passes), y[:9]), (x[9:], y[9:])])

    operator = LossSurface(mlp(), nn.CrossEntropyLoss()).operator(None, Growing())
    operator.matvec(v)
    with pytest.raises(ValueError, match="the loader yields other data each time"):
        operator.matvec(v)


def test_data_that_can_be_read_once_are_refused():
    surface = LossSurface(mlp(), nn.CrossEntropyLoss())
    parts = batches(draw(17, 5), classes(17))
    for data in (iter(parts), (part for part in parts)):
        with pytest.raises(ValueError, match="which can be read once; pass a list or loader"):
            surface.full_hvp(None, data, torch.ones(39))


def test_operators_for_scipy():
    from scipy.sparse.linalg import eigsh

    torch.manual_seed(0)
    model, x, y = mlp(), draw(17, 5), torch.randint(3, (17,))
    surface = LossSurface(model, nn.CrossEntropyLoss())
    for kind, matrix in (
        ("hessian", surface.hessian(None, x, y).dense()),
        ("gauss_newton", surface.gauss_newton(None, x, y).dense()),
    ):
        operator = surface.operator(None, batches(x, y), kind).linear_operator()
        found = eigsh(operator, 3, which="LA", return_eigenvectors=False, tol=1e-10)
        assert np.sort(found) == pytest.approx(torch.linalg.eigvalsh(matrix)[-3:].numpy(), abs=1e-9)


def test_fisher_is_the_mean_of_outer_products():
    torch.manual_seed(0)
    model, x, y = mlp(), draw(5, 5), classes(5)
    rows = []
    for i in range(5):
        parts = torch.autograd.grad(
            F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters())
        )
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    G = torch.stack(rows)
    V = torch.randn(39, 2, dtype=torch.float64)
    found = LossSurface(model, nn.CrossEntropyLoss()).operator(None, (x, y), "fisher").matvec(V)
    assert (found - G.T @ (G @ V) / 5).abs().max() < 1e-13


def test_a_model_that_couples_samples_has_no_fisher_matrix():
    torch.manual_seed(0)
    net = mlp()
    net[1].forward = lambda h: torch.tanh(h - h.mean(0))
    surface = LossSurface(net, nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="gradients of single samples do not add up"):
        surface.operator(None, (draw(6, 5), classes(6)), "fisher")


@pytest.mark.parametrize(
    ("model", "x", "error", "message"),
    [
        (lambda x: [][1], draw(4, 5), IndexError, "list index out of range"),
        (
            lambda x: x @ torch.ones(3, 3),
            draw(4, 5),
            RuntimeError,
            "cannot be multiplied",
        ),
    ],
)
def test_errors_of_the_model_keep_their_words(model, x, error, message):
    net = mlp()
    net[1].forward = model
    surface = LossSurface(net, nn.CrossEntropyLoss())
    for tool in (surface.hessian, lambda *batch: surface.hvp(*batch, torch.ones(39))):
        with pytest.raises(error, match=message):
            tool(None, x, classes(4))


def test_an_unknown_kind_of_curvature_is_refused():
    with pytest.raises(ValueError, match="Unknown kind of curvature 'fischer'"):
        LossSurface(mlp(), nn.CrossEntropyLoss()).operator(None, (draw(2, 5), classes(2)), "fischer")
