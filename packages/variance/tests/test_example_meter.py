"""The noise scale of a loop's single examples, against plain autograd on one example after the other."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from variance.errors import ConfigError, CoupledExamples, UnsupportedLayer
from variance.noise_scale import ExampleMeter


class Characters(nn.Module):
    """A character transformer of one layer; its table may also be the head."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 12, padding_idx=0)
        self.norm = nn.LayerNorm(12)
        self.mix = nn.Linear(12, 12)
        self.head = None if tied else nn.Linear(12, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.mix(self.norm(self.table(x))))
        return self.head(h).mean(1) if self.head else F.linear(h, self.table.weight).mean(1)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(inplace=True), nn.Linear(16, 3)),
        lambda: torch.randn(8, 6),
    ),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 3)
        ),
        lambda: torch.randn(8, 2, 4, 4),
    ),
    "twice": (lambda: Twice(), lambda: torch.randn(8, 6)),
    "characters": (Characters, lambda: torch.randint(11, (8, 5))),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3)),
        lambda: torch.randn(8, 6),
    ),
}


class Twice(nn.Module):
    """One layer at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(torch.relu(self.layer(x))))


def by_hand(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, tuple[float, float]]:
    """Unbiased variance of one example's gradient and squared norm of the mean, by parameter."""
    outputs = model(x)  # once: all examples see the same draws of dropout as in the loop
    losses = F.cross_entropy(outputs, y, reduction="none")
    rows = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in losses]
    found, n = {}, len(x)
    for i, (name, _) in enumerate(model.named_parameters()):
        g = torch.stack([row[i].flatten() for row in rows]).double()
        trace = float(g.var(0, correction=1).sum())
        found[name] = (trace, float(g.mean(0).square().sum()) - trace / n)
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
def test_a_step_is_that_of_single_examples(name: str, loss_scale: float) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name][0](), MODELS[name][1]()
    y = torch.randint(3, (8,))
    expected = []
    with ExampleMeter(model) as meter, warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(3):
            torch.manual_seed(step)
            expected.append(by_hand(model, x, y))
            torch.manual_seed(step)
            model.zero_grad()
            (loss_scale * F.cross_entropy(model(x), y)).backward()
            meter.step(loss_scale=loss_scale)
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.1 * torch.randn(p.shape))
    state = meter.state_dict()
    for row, by_name in enumerate(expected):
        for column, (trace, norm) in enumerate(by_name.values()):
            assert float(state["traces"][row, column]) == pytest.approx(trace, rel=2e-5, abs=1e-9)
            assert float(state["norms"][row, column]) == pytest.approx(norm, rel=2e-5, abs=2e-5 * trace)


def test_a_finite_population_is_its_own_exact_value() -> None:
    """All pairs of a population of six: their mean is the exact variance and norm, without any error."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.randn(6, 4), torch.randint(3, (6,))
    with ExampleMeter(model, population=6) as meter:
        for i in range(6):
            for j in range(i):
                model.zero_grad()
                F.cross_entropy(model(x[[i, j]]), y[[i, j]]).backward()
                meter.step()
    rows = [
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(F.cross_entropy(model(x[[i]]), y[[i]]), list(model.parameters()))
            ]
        )
        for i in range(6)
    ]
    g = torch.stack(rows).double()
    found = meter.result()
    assert found.trace_cov == pytest.approx(float(g.var(0, correction=0).sum()), rel=1e-5)
    assert found.grad_norm_sq == pytest.approx(float(g.mean(0).square().sum()), rel=1e-4)


def one_step(model: nn.Module, x: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor]) -> ExampleMeter:
    meter = ExampleMeter(model)
    loss(model(x)).backward()
    meter.step()
    return meter


def masked(keep: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.where(keep(x), x.roll(-1, 1), -100)


def tokens(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def mean_of_weighted(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, targets, weight=WEIGHTS, reduction="none").mean()


WEIGHTS = torch.tensor([1.0, 9.0, 2.0])
LOSSES = {  # loss, targets of the inputs, whether it divides by what differs
    "class weights": (nn.CrossEntropyLoss(weight=WEIGHTS), None, True),
    "twice that": (lambda o, t: 2 * F.cross_entropy(o, t, weight=WEIGHTS), None, True),
    "classes along axis 1": (lambda o, t: F.cross_entropy(o.mT, t), masked(lambda x: x > 4), True),
    "masked tokens": (tokens, masked(lambda x: x > 4), True),
    "as many masked": (tokens, masked(lambda x: torch.arange(5).expand_as(x) < 4), False),
    "mean": (F.cross_entropy, None, False),
    "weights in a plain mean": (mean_of_weighted, None, False),
    "class weights, smoothed": (nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.2), None, True),
    "masked and smoothed": (
        lambda o, t: F.cross_entropy(o.mT, t, label_smoothing=0.1),
        masked(lambda x: x > 4),
        True,
    ),
    "smoothed weights in a plain mean": (
        lambda o, t: F.cross_entropy(o, t, WEIGHTS, reduction="none", label_smoothing=0.2).mean(),
        None,
        False,
    ),
    "label smoothing": (lambda o, t: F.cross_entropy(o, t, label_smoothing=0.1), None, False),
    "squares": (lambda o, t: F.mse_loss(o, F.one_hot(t, 3).float()), None, False),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_divisor_that_differs_from_batch_to_batch_is_refused(name: str) -> None:
    # three classes, weights 1 to 9: noise scale 3.3 was given where that of the loss is 2.0
    torch.manual_seed(0)
    loss, targets, refused = LOSSES[name]
    model = nn.Sequential(nn.Linear(6, 3) if targets is None else nn.Embedding(11, 11))

    def train(meter: ExampleMeter) -> None:
        for _ in range(4):
            model.zero_grad()
            x = torch.randn(16, 6) if targets is None else torch.randint(11, (16, 5))
            y = torch.randint(3, (16,)) if targets is None else targets(x)
            (loss(model(x), y) * 1024).backward()
            meter.step(loss_scale=1024)

    with ExampleMeter(model) as meter:
        if refused:
            with pytest.raises(CoupledExamples, match="divides by a sum of class weights"):
                train(meter)
        else:
            train(meter)


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_two_classes_in_batches_of_a_few(count: int, is_weighted: bool) -> None:
    torch.manual_seed(0)
    model, weights = nn.Linear(6, 2), torch.tensor([1.0, 9.0]) if is_weighted else None

    def train() -> None:
        with ExampleMeter(model) as meter:
            for _ in range(256):
                model.zero_grad()
                F.cross_entropy(model(torch.randn(count, 6)), torch.randint(2, (count,)), weights).backward()
                meter.step()

    if is_weighted:
        with pytest.raises(CoupledExamples, match="divides by a sum of class weights"):
            train()
    else:
        train()


@pytest.mark.parametrize(("kind", "refused"), [(torch.bfloat16, True), (torch.float16, False)])
def test_class_weights_in_half_precision(kind: torch.dtype, refused: bool) -> None:
    """With a constant divisor batches of the same classes have the same sums, up to rounding."""
    torch.manual_seed(0)
    model, weights = nn.Linear(6, 2).to(kind), torch.tensor([1.0, 9.0])

    def train() -> None:
        with ExampleMeter(model) as meter:
            for _ in range(256):
                model.zero_grad()
                outputs, targets = model(torch.randn(4, 6).to(kind)).float(), torch.randint(2, (4,))
                divided = F.cross_entropy(outputs, targets, weights)
                losses = F.cross_entropy(outputs, targets, weights, reduction="none")
                (divided if refused else losses.mean()).backward()
                meter.step()

    if refused:
        with pytest.raises(CoupledExamples, match="divides by a sum of class weights"):
            train()
    else:
        train()


@pytest.mark.parametrize("is_full", [False, True])
def test_weights_of_the_same_batch_divide_by_a_constant(is_full: bool) -> None:
    """A full batch, and batches of which a share is masked whole, have a divisor that does not change."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(6, 3), torch.randn(16, 6), torch.randint(3, (16,))
    weights = torch.tensor([1.0, 9.0, 2.0])[y] if is_full else (torch.arange(16) != 3).float()

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return (weights[rows] * F.cross_entropy(model(x[rows]), y[rows], reduction="none")).mean()

    parameters = list(model.parameters())
    with ExampleMeter(model) as meter:
        for _ in range(4):
            model.zero_grad()
            loss(torch.arange(16)).backward()
            meter.step()
    rows = [torch.autograd.grad(loss(torch.tensor([i])), parameters) for i in range(16)]
    g = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows]).double()
    assert meter.result().trace_cov == pytest.approx(float(g.var(0).sum()), rel=1e-4)


def test_complex_outputs() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 4), torch.randn(8, 4)
    spectrum = nn.Sequential(model, Spectrum())
    meter = one_step(spectrum, x, lambda out: (out - 1).abs().square().mean())
    parameters = list(model.parameters())
    rows = [torch.autograd.grad((spectrum(x[[i]]) - 1).abs().square().mean(), parameters) for i in range(8)]
    for i in range(2):
        expected = torch.stack([row[i].flatten() for row in rows]).double().var(0).sum()
        assert float(meter.state_dict()["traces"][0, i]) == pytest.approx(float(expected), rel=1e-5)


class Spectrum(nn.Module):
    """The Fourier transform of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft(x)


def test_a_weight_that_is_also_an_argument_is_left_out() -> None:
    torch.manual_seed(0)
    model, x = Characters(tied=True), torch.randint(11, (8, 5))
    with pytest.warns(UserWarning, match=r"leaves out 1 of 5 parameters, which differ .*: table\.weight\."):
        one_step(model, x, lambda out: F.cross_entropy(out, torch.randint(3, (8,))))


def test_a_weight_penalty_is_seen() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), torch.randn(8, 6)
    with pytest.warns(UserWarning, match=r"does not come through the outputs .*: 0\.weight\."):
        one_step(model, x, lambda out: out.square().mean() + model[0].weight.square().sum())


class SequenceFirst(nn.Module):
    """Time along the first axis inside: as many steps as examples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.inner(x.transpose(0, 1))).transpose(0, 1).mean(1))


@pytest.mark.parametrize(("length", "reason"), [(8, "differ from"), (5, "along their first axis")])
def test_time_along_the_first_axis_is_left_out(length: int, reason: str) -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=f"leaves out 2 of 4 parameters, .*{reason}.*inner"):
        one_step(SequenceFirst(), torch.randn(8, length, 6), lambda out: out.square().mean())


def test_layers_without_a_rule_are_left_out_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.PReLU())
    with pytest.warns(
        UserWarning, match=r"leaves out 1 of 3 parameters, which belong to .* without a rule: 1\.weight"
    ):
        meter = ExampleMeter(model)
    assert meter.state_dict()["parameters"] == ["0.weight", "0.bias"]
    with pytest.raises(UnsupportedLayer, match="no parameter is left"):
        ExampleMeter(nn.PReLU())


def test_steps_go_on_without_what_is_left_out_and_from_a_checkpoint() -> None:
    """A table is left out at the first step; a loop that stops and goes on measures the same."""

    def train(stop: int) -> ExampleMeter:
        torch.manual_seed(0)
        model = Characters(tied=True)
        meter = ExampleMeter(model, every=2)
        for step in range(12):
            if step == stop:
                state = copy.deepcopy(meter.state_dict())
                meter.close()
                meter = ExampleMeter(model, every=2)
                meter.load_state_dict(state)
            model.zero_grad()
            F.cross_entropy(model(torch.randint(11, (8, 5))), torch.randint(3, (8,))).backward()
            meter.step()
        return meter

    with pytest.warns(UserWarning, match=r"leaves out 1 of 5 parameters.*: table\.weight\."):  # once
        whole = train(stop=-1)
    with pytest.warns(UserWarning, match=r"(autograd|state that is loaded): table\.weight\."):
        resumed = train(stop=5)
    assert list(whole.result().by_parameter) == ["norm.weight", "norm.bias", "mix.weight", "mix.bias"]
    assert repr(resumed.result()) == repr(whole.result())
    for name in ("traces", "norms"):
        assert torch.equal(resumed.state_dict()[name], whole.state_dict()[name])


@pytest.mark.filterwarnings("ignore:the noise of a step is below the rounding")
def test_examples_without_noise_have_a_noise_scale_of_zero() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(6, 3), torch.randn(1, 6).expand(8, 6)
    with ExampleMeter(model) as meter:
        for _ in range(5):
            model.zero_grad()
            F.cross_entropy(model(x), torch.zeros(8).long()).backward()
            meter.step()
    assert meter.result().low == pytest.approx(0, abs=1e-4)
    assert meter.result().noise_scale == pytest.approx(0, abs=1e-4)


def test_what_a_step_must_be() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(8, 4)
    meter = ExampleMeter(model)
    with pytest.raises(ConfigError, match="0 forward and backward passes"):
        meter.step()
    model(x[:1]).square().mean().backward()
    with pytest.raises(ConfigError, match="1 example has no variance"):
        meter.step()
    model.zero_grad()
    model(x)  # a forward pass without a backward pass does not count
    model(x).square().mean().backward()
    meter.step()
    model.zero_grad()
    for part in x.split(4):
        model(part).square().mean().backward()
    with pytest.raises(ConfigError, match="2 forward and backward passes"):
        meter.step()
    model.zero_grad()
    model(x).square().mean().backward()
    model.weight.grad.mul_(0.5)
    with pytest.raises(ConfigError, match="changed after its last backward pass"):
        meter.step()
    with pytest.raises(ConfigError, match="every is 0"):
        ExampleMeter(model, every=0)
    with pytest.raises(UnsupportedLayer, match="BatchNorm1d"):
        ExampleMeter(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))


def test_inputs_without_a_tensor_are_refused() -> None:
    class Graph:
        """A batch of a class of its own."""

        x = torch.randn(8, 4)

    class OfGraphs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, graph: Graph) -> torch.Tensor:
            return self.layer(graph.x)

    with pytest.raises(ConfigError, match=r"inputs \(Graph\) hold no tensor"):
        one_step(OfGraphs(), Graph(), lambda out: out.square().mean())


def test_a_model_that_returns_its_loss_is_refused() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).square().mean()

    with pytest.raises(ConfigError, match="return logits instead of the loss"):
        one_step(Whole(), torch.randn(8, 4), lambda loss: loss)


def test_the_loop_is_left_as_it_is() -> None:
    """Weights, gradients and random numbers are those of the loop without a meter."""

    def train(measured: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model, x = MODELS["dropout"][0](), torch.randn(8, 6)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        meter = ExampleMeter(model, every=2) if measured else None
        for _ in range(5):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            if meter:
                meter.step()
            optimizer.step()
        if meter:
            assert meter.result().num_steps == 3
        return [p.detach() for p in model.parameters()] + [torch.rand(3)]

    for with_meter, without in zip(train(True), train(False), strict=True):
        assert torch.equal(with_meter, without)


def test_a_first_step_that_overflows_is_left_out() -> None:
    """As with a `GradScaler`, whose first scale is too large; the first finite step is checked."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    meter = ExampleMeter(model)
    for scale in (torch.inf, 1.0, 1.0):
        model.zero_grad()
        (scale * model(torch.randn(8, 6)).square().mean()).backward()
        if scale == torch.inf:
            with pytest.warns(UserWarning, match="not finite"):
                meter.step()
        else:
            meter.step()
    assert (meter.num_skipped, meter._checks) == (1, 2)


class Features(nn.Module):
    """One output is made of another."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = torch.tanh(self.body(x))
        return {"features": features, "logits": self.head(features)}


def test_outputs_that_are_made_of_each_other() -> None:
    torch.manual_seed(0)
    model, x = Features(), torch.randn(8, 6)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        out = model(rows)
        return out["logits"].square().mean() + out["features"].square().mean()

    rows = [torch.autograd.grad(loss(x[[i]]), list(model.parameters())) for i in range(8)]
    meter = ExampleMeter(model)
    loss(x).backward()
    meter.step()
    for i in range(4):
        expected = torch.stack([row[i].flatten() for row in rows]).double().var(0).sum()
        assert float(meter.state_dict()["traces"][0, i]) == pytest.approx(float(expected), rel=1e-5)


def test_a_part_of_a_model_has_a_meter_of_its_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    part, whole = ExampleMeter(model[1]), ExampleMeter(model)
    for _ in range(2):
        model.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        part.step()
        whole.step()
    assert torch.equal(part.state_dict()["traces"], whole.state_dict()["traces"][:, 2:])
