"""Models, losses and batches that people bring: every tool agrees with plain autograd or refuses by name.

The oracle is a loop of plain autograd over single examples, or over the losses of one graph where random
numbers are drawn.
"""

import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from variance import per_example
from variance.errors import ConfigError, CoupledExamples, NonFiniteGradient, SlowPath, UnsupportedLayer
from variance.gradient_clustering import cluster
from variance.measurement import measure_model
from variance.objective import Batch, Objective, Point

N = 5


class Body(nn.Module):
    """A module made of a function of itself and the input."""

    def __init__(self, forward: Any, **children: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self._run = forward
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x: Tensor, **more: Tensor) -> Any:
        return self._run(self, x, **more)


def sequence_first(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.tanh(m.inner(x.transpose(0, 1))).mean(0))


def sorted_batch(m: Any, x: Tensor) -> Tensor:
    order = x[:, 0].argsort()
    return m.head(torch.tanh(m.inner(x[order]))[order.argsort()])


def attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.inner(x).chunk(3, -1)
    return m.head(F.scaled_dot_product_attention(q, k, v, is_causal=True).mean(1))


def linear() -> nn.Linear:
    return nn.Linear(6, 6)


def head() -> nn.Linear:
    return nn.Linear(6, 3)


def flat() -> Tensor:
    return torch.randn(N, 6)


def tokens() -> Tensor:
    return torch.randint(7, (N, 4))


def square() -> Tensor:
    return torch.randn(N, N, 6)


def embedded(**options: Any) -> nn.Module:
    return Body(lambda m, x: m.head(m.table(x).mean(1)), table=nn.Embedding(7, 6, **options), head=head())


def recurrent(kind: type[nn.Module]) -> nn.Module:
    return Body(lambda m, x: m.head(m.cell(x)[0][:, -1]), cell=kind(6, 6, batch_first=True), head=head())


MODELS: dict[str, Any] = {
    "tied-functionally": lambda: (
        Body(lambda m, x: F.linear(m.table(x).mean(1).tanh(), m.table.weight), table=nn.Embedding(7, 6)),
        tokens(),
    ),
    "transposed": lambda: (Body(lambda m, x: F.linear(m.l(x).tanh(), m.l.weight.T), l=head()), flat()),
    "penalty-in-forward": lambda: (
        Body(lambda m, x: m.l(x) * (1 + m.l.weight.square().sum()), l=head()),
        flat(),
    ),
    "sequence-first": lambda: (Body(sequence_first, inner=linear(), head=head()), square()),
    "sorted-batch": lambda: (Body(sorted_batch, inner=linear(), head=head()), flat()),
    "keyword-call": lambda: (Body(lambda m, x: m.l(input=x), l=head()), flat()),
    "scalar-parameter": lambda: (
        Body(lambda m, x: m.l(x) * m.scale, l=head(), scale=nn.Parameter(torch.tensor(1.3))),
        flat(),
    ),
    "used-twice": lambda: (Body(lambda m, x: m.head(m.l(m.l(x).tanh())), l=linear(), head=head()), flat()),
    "unused": lambda: (Body(lambda m, x: m.head(x), head=head(), other=linear()), flat()),
    "lstm": lambda: (recurrent(nn.LSTM), square()),
    "gru": lambda: (recurrent(nn.GRU), square()),
    "rnn": lambda: (recurrent(nn.RNN), square()),
    "padding": lambda: (embedded(padding_idx=2), tokens()),
    "max-norm": lambda: (embedded(max_norm=0.5), tokens()),
    "sparse": lambda: (embedded(sparse=True), tokens()),
    "attention": lambda: (Body(attention, inner=nn.Linear(6, 18), head=head()), square()),
    "checkpoint": lambda: (
        Body(
            lambda m, x: m.head(checkpoint(m.inner, m.first(x), use_reentrant=False)),
            first=linear(),
            inner=nn.Sequential(nn.Tanh(), linear()),
            head=head(),
        ),
        flat(),
    ),
    "instance-norm": lambda: (
        nn.Sequential(nn.Conv1d(N, 4, 3), nn.InstanceNorm1d(4, affine=True), nn.Flatten(), nn.Linear(16, 3)),
        square(),
    ),
    "depthwise": lambda: (
        nn.Sequential(nn.Conv1d(N, 2 * N, 3, groups=N), nn.Flatten(), nn.Linear(40, 3)),
        square(),
    ),
    "frozen-half": lambda: (
        nn.Sequential(linear().requires_grad_(False), nn.Tanh(), head()),
        flat(),
    ),
    "one-example": lambda: (nn.Sequential(linear(), nn.Tanh(), head()), flat()[:1]),
    "dictionary": lambda: (
        Body(lambda m, x, shift: m.l(x + shift), l=head()),
        {"x": flat(), "shift": flat()},
    ),
    "dictionary-out": lambda: (Body(lambda m, x: {"logits": m.l(x)}, l=head()), flat()),
}
LOSSES: dict[str, Any] = {
    "mean": F.cross_entropy,
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "none": nn.CrossEntropyLoss(reduction="none"),
    "weighted-sum": nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 9.0, 1.0, 1.0, 2.0, 7.0]), reduction="sum"),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.2),
}


def logits(outputs: Any) -> Tensor:
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def oracle(model: nn.Module, loss: Any, x: Any, y: Tensor) -> Tensor:
    rows = []
    parameters = [p for p in model.parameters() if p.requires_grad]
    for i in range(len(y)):
        one = {k: v[i : i + 1] for k, v in x.items()} if isinstance(x, dict) else x[i : i + 1]
        outputs = model(**one) if isinstance(x, dict) else model(one)
        total = loss(outputs, y[i : i + 1]).sum()
        found = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.to_dense().flatten() for g in found]))
    return torch.stack(rows)


def snapshot(model: nn.Module) -> list[Any]:
    values = [v.detach().clone() for v in (*model.parameters(), *model.buffers())]
    flags = [m.training for m in model.modules()]
    return [values, flags, [p.grad for p in model.parameters()], torch.get_rng_state()]


def same(one: list[Any], other: list[Any]) -> bool:
    return (
        all(map(torch.equal, one[0], other[0])) and one[1:3] == other[1:3] and torch.equal(one[3], other[3])
    )


@pytest.mark.filterwarnings("ignore::variance.errors.SlowPath", "ignore:There is a performance drop")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_every_quantity_is_that_of_autograd(name: str, loss: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name]()
    model = model.double()
    x = {k: v.double() for k, v in x.items()} if isinstance(x, dict) else x
    x = x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
    classes = 7 if name == "tied-functionally" else 6 if name == "transposed" else 3
    y = torch.randint(classes, (1 if name == "one-example" else N,))
    weight = getattr(LOSSES[loss], "weight", None)
    chosen = (
        LOSSES[loss] if weight is None else nn.CrossEntropyLoss(weight[:classes].double(), reduction="sum")
    )

    def of(outputs: Any, targets: Tensor) -> Tensor:
        return chosen(logits(outputs), targets)

    before = snapshot(model)
    g = per_example.gradients(model, of, x, y)
    norms = per_example.squared_norms(model, of, x, y)
    kernel = per_example.gram(model, of, x, y)
    second = per_example.second_moments(model, of, x, y)
    trace = per_example.trace_of_covariance(model, of, x, y)
    assert same(before, snapshot(model))
    expected = oracle(model, of, x, y)
    close = {"rtol": 1e-8, "atol": 1e-10}
    torch.testing.assert_close(g, expected, **close)
    torch.testing.assert_close(norms, expected.square().sum(1), **close)
    torch.testing.assert_close(kernel, expected @ expected.T, **close)
    torch.testing.assert_close(second, expected.square().mean(0), **close)
    spread = float((expected - expected.mean(0)).square().sum() / len(expected))
    assert trace == pytest.approx(spread, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_precisions_agree_with_double(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(linear(), nn.Tanh(), head()), flat()
    y = torch.randint(3, (N,))
    low = per_example.gradients(model.to(dtype), F.cross_entropy, x.to(dtype), y).double()
    exact = oracle(model.double(), F.cross_entropy, x.to(dtype).double(), y)
    assert float((low - exact).norm() / exact.norm()) < 10 * torch.finfo(dtype).eps


class Mixed(nn.Module):
    """Linear, normalisation, attention and a tied table; bfloat16 inside, float32 outside."""

    def __init__(self, tied: bool, enabled: bool = True) -> None:
        super().__init__()
        self.table, self.inner, self.norm = nn.Embedding(7, 6), nn.Linear(6, 18), nn.LayerNorm(6)
        self.tied, self.enabled = tied, enabled

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.enabled):
            q, k, v = self.inner(self.table(x)).chunk(3, -1)
            h = self.norm(F.scaled_dot_product_attention(q, k, v).mean(1))
            return (F.linear(h, self.table.weight) if self.tied else h).float()


@pytest.mark.filterwarnings("ignore::variance.errors.SlowPath", "ignore:There is a performance drop")
@pytest.mark.parametrize("tied", [False, True])
def test_autocast_inside_a_model_is_full_precision_up_to_rounding(tied: bool) -> None:
    torch.manual_seed(0)
    model, x, y = Mixed(tied), tokens(), torch.randint(6, (N,))
    found = per_example.gradients(model, F.cross_entropy, x, y)
    model.enabled = False
    expected = oracle(model.double(), F.cross_entropy, x, y)
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 3 * torch.finfo(torch.bfloat16).eps


def test_layers_of_two_precisions_and_inference_mode() -> None:
    torch.manual_seed(0)
    model = Body(lambda m, x: m.head(m.first(x).tanh().bfloat16()).float(), first=linear(),
                 head=head().bfloat16())  # fmt: skip
    x, y = flat(), torch.randint(3, (N,))
    expected = oracle(model, F.cross_entropy, x, y).float()
    with torch.inference_mode():
        found = per_example.gradients(model, F.cross_entropy, x, y)
        measured = measure_model(model, F.cross_entropy, x, y, batch_size=2)
    assert float((found - expected).norm() / expected.norm()) < 3 * torch.finfo(torch.bfloat16).eps
    assert measured["avg_var"] > 0


def test_an_autocast_block_around_is_refused_by_name() -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ConfigError, match="into the model's forward"):
        per_example.gradients(head(), F.cross_entropy, flat(), torch.randint(3, (N,)))


def test_dropout_masks_are_those_of_one_pass() -> None:
    """A parameter outside the recorded layers sees the masks of the recorded ones: s dL/ds = h . dL/dh."""
    torch.manual_seed(0)
    model = Body(
        lambda m, x: m.head(m.drop(m.inner(x)) * m.scale),
        inner=linear(),
        drop=nn.Dropout(0.5),
        scale=nn.Parameter(torch.ones(6)),
        head=nn.Linear(6, 3, bias=False),
    ).double()
    x, y = flat().double(), torch.randint(3, (N,))
    state = torch.get_rng_state()
    with pytest.warns(SlowPath, match="scale"):
        g = per_example.gradients(model, F.cross_entropy, x, y)
    assert torch.equal(torch.get_rng_state(), state)
    losses = F.cross_entropy(model(x), y, reduction="none")
    parameters = list(model.parameters())
    rows = [torch.autograd.grad(one, parameters, retain_graph=True) for one in losses]
    expected = torch.stack([torch.cat([v.flatten() for v in row]) for row in rows])
    torch.testing.assert_close(g, expected, rtol=1e-9, atol=1e-12)


def test_the_check_finds_an_exchange_that_begins_later() -> None:
    """The first batch happens to be sorted; the second is not."""
    torch.manual_seed(0)
    model, x = MODELS["sorted-batch"]()
    y = torch.randint(3, (N,))
    x = x[x[:, 0].argsort()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        per_example.gradients(model, F.cross_entropy, x, y)
    x = x.flip(0)
    with pytest.warns(SlowPath, match="inner"):
        g = per_example.gradients(model, F.cross_entropy, x, y)
    torch.testing.assert_close(g, oracle(model, F.cross_entropy, x, y))


class TiesLate(nn.Module):
    """Uses its weight a second time from some pass on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.ties = False

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(x))
        return F.linear(h, self.inner.weight.T) if self.ties else h


@pytest.mark.parametrize("passes", [2, 4, 5])
def test_other_operations_are_noticed_at_any_pass(passes: int) -> None:
    """Passes 3, 5 and 6 are not compared with autograd otherwise."""
    torch.manual_seed(0)
    model, x, y = TiesLate(), torch.randn(N, 6), torch.randint(6, (N,))
    for _ in range(passes):
        per_example.gradients(model, F.cross_entropy, x, y)
    model.ties = True
    with pytest.warns(SlowPath, match="inner"):
        g = per_example.gradients(model, F.cross_entropy, x, y)
    torch.testing.assert_close(g, oracle(model, F.cross_entropy, x, y))


WEIGHTS = torch.tensor([1.0, 10.0, 100.0])


@pytest.mark.parametrize("zero", [False, True], ids=["trained", "outputs of zero"])
def test_a_mean_with_class_weights_has_no_per_example_gradients(zero: bool) -> None:
    torch.manual_seed(0)
    model, x, y = head(), flat(), torch.tensor([0, 1, 2, 0, 1])
    if zero:  # all losses are equal then, and only derivatives tell
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
    with pytest.raises(CoupledExamples, match=r"neither the mean nor the sum.*reduction='none' or 'sum'"):
        per_example.gradients(model, nn.CrossEntropyLoss(WEIGHTS), x, y)


def test_masked_tokens_and_contrastive_losses_are_refused() -> None:
    torch.manual_seed(0)
    model, x, y = head(), square(), torch.randint(3, (N, N))
    y[0, 1:] = -100
    with pytest.raises(CoupledExamples, match="ignored or masked positions"):
        per_example.gradients(model, lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten()), x, y)

    y[3] = -100  # nothing is left of one example: its mean is no number, that of the batch is
    with pytest.raises(CoupledExamples, match="ignored or masked positions"):
        per_example.gradients(model, lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten()), x, y)

    def contrast(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))

    with pytest.raises(CoupledExamples):
        per_example.gradients(model, contrast, flat(), torch.zeros(N))


@pytest.mark.parametrize("kind", ["weights", "masked"])
def test_batch_gradients_are_those_of_the_users_loss(kind: str) -> None:
    """With draws of one repeated example there is no noise: |grad|^2 is that of autograd."""
    torch.manual_seed(0)
    model, x = head().double(), flat().double()[:1].expand(4, 6)
    y, loss = torch.tensor([2, 2, 2, 2]), nn.CrossEntropyLoss(WEIGHTS.double(), label_smoothing=0.5)
    if kind == "masked":
        x, y = square().double()[:1].expand(4, N, 6), torch.tensor([[0, 1, -100, -100, 2]] * 4)

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    found = measure_model(model, loss, x, y, batch_size=4, num_draws=3)
    expected = torch.autograd.grad(loss(model(x), y), list(model.parameters()))
    assert found["grad_norm_sq"] == pytest.approx(float(sum(g.square().sum() for g in expected)), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [1.0, 0.1])
def test_models_that_mix_examples_are_refused(dtype: torch.dtype, share: float) -> None:
    torch.manual_seed(0)
    model = Body(lambda m, x: m.l(x - share * x.mean(0)), l=head()).to(dtype)
    with pytest.raises(CoupledExamples, match="depends on the other examples"):
        per_example.gradients(model, F.cross_entropy, flat().to(dtype), torch.randint(3, (N,)))


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_reentrant_checkpointing_is_refused_by_name() -> None:
    model = Body(lambda m, x: m.head(checkpoint(m.inner, m.first(x), use_reentrant=True)),
                 first=linear(), inner=linear(), head=head())  # fmt: skip
    with pytest.raises(UnsupportedLayer, match="use_reentrant=False"):
        per_example.gradients(model, F.cross_entropy, flat(), torch.randint(3, (N,)))
    with pytest.raises(UnsupportedLayer, match="use_reentrant=False"):
        measure_model(model, F.cross_entropy, flat(), torch.randint(3, (N,)), batch_size=2)


def test_infinite_values_name_their_examples() -> None:
    x = flat()
    x[3, 0] = float("inf")
    with pytest.raises(NonFiniteGradient, match=r"examples 3\)"):
        per_example.gradients(head(), F.cross_entropy, x, torch.randint(3, (N,)))
    many, y = torch.zeros(1500, 6), torch.zeros(1500, dtype=torch.long)
    many[1400] = float("nan")  # beyond the first chunk of a population
    with pytest.raises(NonFiniteGradient, match=r"examples 1400\)"):
        measure_model(head(), F.cross_entropy, many, y, batch_size=8, use="all")
    with pytest.raises(NonFiniteGradient, match=r"examples 1400\)"):
        cluster(head(), F.cross_entropy, many, y, 4)


def test_a_loss_from_inside_the_model_has_no_examples() -> None:
    """A scalar among the outputs is one number for the batch, however the targets are given."""
    torch.manual_seed(0)
    y = torch.randint(3, (N,))
    model = Body(lambda m, x: {"loss": F.cross_entropy(m.l(x), y[: len(x)]), "logits": m.l(x)}, l=head())
    for targets in (y, torch.zeros(N, 2)):
        with pytest.raises(CoupledExamples, match="returns a loss of the whole batch"):
            per_example.gradients(model, lambda outputs, _: outputs["loss"], flat(), targets)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_squares_of_half_precision_neither_overflow_nor_vanish(dtype: torch.dtype, scale: float) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(linear(), nn.Tanh(), head()), flat().to(dtype)
    y = torch.randint(3, (N,))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return scale * F.cross_entropy(outputs, targets, reduction="none")

    low = [f(model.to(dtype), loss, x, y) for f in (per_example.squared_norms, per_example.gram,
           per_example.second_moments)]  # fmt: skip
    g = oracle(model.double(), loss, x.double(), y)
    for found, expected in zip(low, (g.square().sum(1), g @ g.T, g.square().mean(0)), strict=True):
        assert float((found - expected).norm() / expected.norm()) < 5 * torch.finfo(dtype).eps


def test_a_weight_penalty_in_the_loss_counts_or_is_refused() -> None:
    """The loss reads the parameters themselves, not what stands for them in a functional call."""
    torch.manual_seed(0)
    model, x, y = head().double(), flat().double()[:1].expand(4, 6), torch.tensor([2, 2, 2, 2])

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) + 0.3 * sum(p.square().sum() for p in model.parameters())

    g = torch.autograd.grad(loss(model(x), y), list(model.parameters()))
    found = measure_model(model, loss, x, y, batch_size=2, num_draws=3)
    assert found["grad_norm_sq"] == pytest.approx(sum(float(v.square().sum()) for v in g), rel=1e-9)
    for measure in (per_example.squared_norms, lambda *of: measure_model(*of, batch_size=2, use="all")):
        with pytest.raises(CoupledExamples, match="reads parameter 'weight' itself"):
            measure(model, loss, x, y)
    objective, point = Objective(model, loss), Point.of(model)
    batch = Batch(x, y, torch.arange(4), torch.ones(4, dtype=torch.float64))
    with pytest.raises(ConfigError, match="cannot be evaluated at other parameters"):
        objective.gradient(point.moved(torch.ones_like(point.flat())), batch)


def draws_elsewhere(m: Any, x: Tensor) -> Tensor:
    h = m.inner(x)
    h = h + x if random.random() < 0.5 else h
    return m.head(h.tanh() if np.random.rand() < 0.5 else h)  # noqa: NPY002 - as models do


@pytest.mark.filterwarnings("ignore::variance.errors.SlowPath")
def test_random_numbers_of_numpy_and_python_are_those_of_one_pass() -> None:
    torch.manual_seed(0)
    model = Body(draws_elsewhere, inner=linear(), head=head()).double()
    x, y = flat().double(), torch.randint(3, (N,))
    for seed in range(6):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        g = per_example.gradients(model, F.cross_entropy, x, y)
        losses = F.cross_entropy(model(x), y, reduction="none")  # draws what the pass above drew
        rows = [torch.autograd.grad(one, list(model.parameters()), retain_graph=True) for one in losses]
        expected = torch.stack([torch.cat([v.flatten() for v in row]) for row in rows])
        torch.testing.assert_close(g, expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(ConfigError, match="draws random numbers"):
        measure_model(model, F.cross_entropy, x, y, batch_size=2, use="all")


def masked(outputs: Tensor) -> Tensor:
    return torch.cat([outputs, torch.full((len(outputs), 1), -torch.inf)], 1)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: masked(m.head(x - x.mean(0))),
        lambda m, x: m.head(F.dropout(x - x.mean(0), 0.5)),
        lambda m, x: m.head(x - x.mean(0)).expand(2, N, 3),
    ],
    ids=["masked", "dropout", "sequence first"],
)
def test_a_mean_over_examples_is_found_behind_anything(forward: Any) -> None:
    torch.manual_seed(0)
    model, x, y = Body(forward, head=head()), flat(), torch.randint(3, (N,))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs if outputs.ndim == 2 else outputs[0], targets, reduction="none")

    with pytest.raises(CoupledExamples, match="depends on the other examples"):
        per_example.gradients(model, loss, x, y)


@pytest.mark.filterwarnings("ignore::variance.errors.SlowPath", "ignore::FutureWarning")
@pytest.mark.parametrize("normalise", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_the_power_iteration_of_spectral_norm_does_not_move(normalise: Any) -> None:
    torch.manual_seed(0)
    model, x, y = nn.Sequential(normalise(linear()), nn.Tanh(), head()), flat(), torch.randint(3, (N,))
    before = snapshot(model)
    per_example.gradients(model, F.cross_entropy, x, y)
    assert same(before, snapshot(model))


def test_threads_do_not_meet_in_a_model() -> None:
    """A functional call exchanges parameters for a while; two threads must not do so at once."""
    torch.manual_seed(0)
    model, x, y = nn.Sequential(linear(), nn.Tanh(), head()).double(), flat().double(), torch.randint(3, (N,))
    before, objective = list(model.parameters()), Objective(model, F.cross_entropy)
    expected = oracle(model, F.cross_entropy, x, y)
    batch = Batch(x, y, torch.arange(N), torch.ones(N, dtype=torch.float64))

    def run(_: int) -> tuple[Tensor, Tensor]:
        g = per_example.gradients(model, F.cross_entropy, x, y)
        return g.mean(0), objective.gradient(Point.of(model), batch)[0]

    with ThreadPoolExecutor(4) as pool:
        for pair in pool.map(run, range(16)):
            for found in pair:
                torch.testing.assert_close(found, expected.mean(0), rtol=1e-9, atol=1e-12)
    assert all(one is other for one, other in zip(model.parameters(), before, strict=True))
