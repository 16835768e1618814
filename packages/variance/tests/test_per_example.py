"""Per-example gradients against a loop, and every shortcut against the materialised value."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from variance import per_example
from variance.errors import NonFiniteGradient, UnsupportedLayer
from variance.per_example import quantities
from variance.per_example.capturing import capture
from variance.per_example.cost import Shape, choose

EXACT = {"rtol": 1e-9, "atol": 1e-12}  # float64: summation order only
SINGLE = 2e-4  # float32 against float64, section 11 of the specification


class Residual(nn.Module):
    """In-place addition and activation, group norm, and a shared (re-used) convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm, self.relu, self.head = nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.stem(x))
        skip = out
        out = self.body(self.norm(self.body(out)))
        out += skip
        return self.head(self.relu(out).mean((2, 3)))


class TinyTransformer(nn.Module):
    """Embedding, two layers of attention (functional parameters: vmap), LayerNorm, tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.scale = nn.Parameter(torch.ones(8))
        self.unused = nn.Parameter(torch.ones(2))
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head((self.encoder(self.embed(tokens)) * self.scale).mean(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens).mean(1))


class TimeFirst(nn.Module):
    """A linear layer whose first axis is time, not the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x.transpose(0, 1)).transpose(0, 1).mean(1))


def conv(**options: object) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, **options), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)
    )  # type: ignore[arg-type]


def images(channels: int) -> Tensor:
    return torch.randn(5, channels, 7, 7)


CASES = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3, bias=False)),
        lambda: torch.randn(5, 4),
    ),
    "sequence": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(30, 3)),
        lambda: torch.randn(5, 6, 4),
    ),
    "conv": (conv, lambda: images(4)),
    "stride": (lambda: conv(stride=2, padding=1), lambda: images(4)),
    "dilation": (lambda: conv(dilation=2, padding=(2, 1)), lambda: images(4)),
    "groups": (lambda: conv(groups=2, stride=(1, 2)), lambda: images(4)),
    "same": (lambda: conv(padding="same", dilation=(1, 2), bias=False), lambda: images(4)),
    "valid": (lambda: conv(padding="valid"), lambda: images(4)),
    "circular": (lambda: conv(padding=1, padding_mode="circular"), lambda: images(4)),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(12, 3)),
        lambda: torch.randn(5, 2, 7),
    ),
    "residual": (Residual, lambda: images(2)),
    "batchnorm-eval": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(75, 3)).eval(),
        lambda: images(2),
    ),
    "layernorm": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)),
        lambda: torch.randn(5, 4),
    ),
    "transformer": (TinyTransformer, lambda: torch.randint(7, (5, 4))),
    "tied": (Tied, lambda: torch.randint(5, (5, 4))),
    "time-first": (TimeFirst, lambda: torch.randn(5, 6, 3)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    make_model, make_inputs = CASES[request.param]
    model, x = make_model().double(), make_inputs()
    if x.is_floating_point():
        x = x.double()
    return model, x, torch.randint(3, (5,))


def loop(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    rows = []
    parameters = [p for p in model.parameters() if p.requires_grad]
    for i in range(len(x)):
        found = torch.autograd.grad(
            F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), parameters, allow_unused=True
        )
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).flatten()
                    for p, g in zip(parameters, found, strict=True)
                ]
            )
        )
    return torch.stack(rows)


def test_gradients_equal_a_loop_over_examples(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = case
    torch.testing.assert_close(
        per_example.gradients(model, F.cross_entropy, x, y), loop(model, x, y), **EXACT
    )


def test_shortcuts_equal_the_materialised_value(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = case
    g = loop(model, x, y)
    directions = torch.randn(3, g.shape[1], dtype=torch.float64)
    found = capture(model, F.cross_entropy, x, y)
    torch.testing.assert_close(quantities.squared_norms(found), g.square().sum(1), **EXACT)
    torch.testing.assert_close(quantities.gram(found), g @ g.T, **EXACT)
    torch.testing.assert_close(quantities.inner_products(found, directions), g @ directions.T, **EXACT)
    sums = {name: (first.flatten(), second.flatten()) for name, first, second in quantities.moments(found)}
    first, second = (torch.cat(part) for part in zip(*(sums[name] for name in found.shapes), strict=True))
    torch.testing.assert_close(first, g.sum(0), **EXACT)
    torch.testing.assert_close(second, g.square().sum(0), **EXACT)
    trace = (g - g.mean(0)).square().sum(1).mean()
    torch.testing.assert_close(quantities.trace_of_covariance(found), trace, **EXACT)


@pytest.mark.parametrize("formulation", ["positions", "kernels"])
def test_every_formulation_agrees(formulation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    model, x, y = conv(stride=2, padding=1).double(), images(4).double(), torch.randint(3, (5,))
    monkeypatch.setattr(
        quantities,
        "choose",
        lambda task, shape, directions=1: type(
            "C", (), {"formulation": formulation if shape.t > 1 else "outer"}
        ),
    )
    monkeypatch.setattr(quantities, "CHUNK_BYTES", 2 * 6 * 36 * 8)  # two examples at a time
    g = loop(model, x, y)
    torch.testing.assert_close(
        per_example.squared_norms(model, F.cross_entropy, x, y), g.square().sum(1), **EXACT
    )
    torch.testing.assert_close(per_example.gram(model, F.cross_entropy, x, y), g @ g.T, **EXACT)
    torch.testing.assert_close(per_example.inner_products(model, F.cross_entropy, x, y, g), g @ g.T, **EXACT)
    torch.testing.assert_close(
        per_example.second_moments(model, F.cross_entropy, x, y), g.square().mean(0), **EXACT
    )


def test_input_means_are_averages_of_patches(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = case
    for layer in capture(model, F.cross_entropy, x, y, weights_only=True).layers.values():
        if layer.is_weight_layer and layer.groups == 1:  # type: ignore[attr-defined]
            torch.testing.assert_close(layer.input_means(), layer.positions()[0].mean(1), **EXACT)  # type: ignore[attr-defined]


def test_golden(golden) -> None:  # type: ignore[no-untyped-def]
    x, y = golden.data
    found = capture(golden.model(), F.cross_entropy, x, y)
    torch.testing.assert_close(found.losses, golden.tensor("loss"), **EXACT)
    g = per_example.gradients(golden.model(), F.cross_entropy, x, y)
    torch.testing.assert_close(g, golden.tensor("per_sample_grads"), **EXACT)
    single = per_example.gradients(golden.model().float(), F.cross_entropy, x.float(), y)
    assert (single - g).norm() <= SINGLE * g.norm()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_reduction_of_the_loss_does_not_matter(reduction: str) -> None:
    model, x, y = nn.Linear(3, 2).double(), torch.randn(4, 3).double(), torch.randint(2, (4,))
    found = per_example.gradients(model, nn.CrossEntropyLoss(reduction=reduction), x, y)
    torch.testing.assert_close(found, loop(model, x, y), **EXACT)


def test_the_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    model(torch.randn(2, 3)).sum().backward()
    before = [(p.clone(), p.grad.clone()) for p in model.parameters() if p.grad is not None]
    per_example.gradients(model, F.cross_entropy, torch.randn(4, 3), torch.randint(2, (4,)))
    for p, (value, gradient) in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, value)
        assert p.grad is not None
        assert torch.equal(p.grad, gradient)
    assert not any(module._forward_hooks for module in model.modules())


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    g = per_example.gradients(model, F.cross_entropy, torch.randn(5, 3), torch.randint(2, (5,)))
    assert g.shape == (5, 10)


def test_batch_norm_in_training_is_refused_with_advice() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(UnsupportedLayer, match=r"layer '1' \(BatchNorm1d\).*model.eval\(\).*GroupNorm"):
        per_example.gradients(model, F.cross_entropy, torch.randn(5, 3), torch.randint(4, (5,)))


def test_an_input_overwritten_later_is_refused() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x) * 1
            out = self.second(hidden)
            hidden += 1
            return out + hidden

    with pytest.raises(UnsupportedLayer, match=r"modified by an inplace operation.*out-of-place"):
        per_example.squared_norms(Overwrites(), F.cross_entropy, torch.randn(5, 3), torch.randint(3, (5,)))


def test_non_finite_losses_name_their_examples() -> None:
    x = torch.randn(5, 3)
    x[3] = float("nan")
    with pytest.raises(NonFiniteGradient, match=r"1 of 5 examples.*\(examples 3\)"):
        per_example.gradients(nn.Linear(3, 2), F.cross_entropy, x, torch.randint(2, (5,)))


def test_a_loss_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(5, 2\) for 5 examples"):
        per_example.gradients(nn.Linear(3, 2), lambda o, t: o, torch.randn(5, 3), torch.zeros(5))


def test_the_cost_model_never_materialises_a_linear_layer() -> None:
    for task in ("squared_norms", "gram", "second_moments", "inner_products"):
        assert choose(task, Shape(n=128, t=1, o=1024, i=1024), 128).formulation == "outer"


def test_explain_lists_every_layer() -> None:
    text = per_example.explain(
        TinyTransformer(), F.cross_entropy, torch.randint(7, (5, 4)), torch.randint(3, (5,))
    )
    assert "vmap(grad)" in text
    assert "LayerNorm" in text
    assert "n5 t1 o3 i8" in text
