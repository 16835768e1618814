import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from instability import SensitivityProbe, average_relative_l1, numerical_sensitivity
from instability.perturbed_sgd import PerturbedSGD
from instability.rounding import Rooms
from instability.sensitivity.distance import layer_divergence


class Transformer(nn.Module):
    """Two layers with attention, LayerNorm and Embedding, dropout included."""

    def __init__(self, dim=16, vocabulary=12):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        layer = nn.TransformerEncoderLayer(dim, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(dim, vocabulary)

    def forward(self, tokens):
        return self.out(self.encoder(self.embedding(tokens))).flatten(0, 1)


def token_batch(step):
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 12, (8, 6), generator=generator)
    return tokens, tokens.roll(1, dims=1).flatten()


def chaotic_network():
    """Deep, saturating, at a large rate: amplifies within a few dozen steps."""
    layers = [m for _ in range(8) for m in (nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Tanh())]
    return nn.Sequential(nn.Linear(8, 16), *layers, nn.Linear(16, 4))


def noise_batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 8, generator=generator), torch.randint(0, 4, (16,), generator=generator)


@pytest.mark.parametrize(
    "optimizer_fn",
    [
        lambda p: PerturbedSGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.AdamW(p, lr=1e-3),
    ],
    ids=["perturbed", "sgd", "adamw"],
)
def test_transformer_controls_are_exact_and_copies_differ(optimizer_fn):
    report = numerical_sensitivity(
        Transformer, token_batch, optimizer_fn, steps=12, perturbations=(1, 1, 2, 3)
    )
    assert report.controls_hold
    assert (report.divergence[:3] == 0).all()
    assert report.divergence[3, -1] > 0


def test_chaotic_network_is_found_sensitive_and_a_small_rate_is_not():
    reports = {
        lr: numerical_sensitivity(
            chaotic_network,
            noise_batch,
            lambda p, lr=lr: PerturbedSGD(p, lr=lr, momentum=0.9),
            steps,
            (1, 1, 2, 3),
            every=5,
        )
        for lr, steps in ((1.0, 250), (1e-3, 60))
    }
    assert all(report.controls_hold for report in reports.values())
    assert reports[1.0].saturation[0] > 0.1
    assert reports[1.0].growth_rates[0] > 0
    assert 0 < reports[1.0].visible_at[0] <= 250
    assert reports[1e-3].saturation[0] < 1e-3
    assert reports[1e-3].visible_at[0] == -1
    assert "never above 0.001, no growth to measure" in reports[1e-3].summary()
    assert "nan" not in reports[1.0].summary() + reports[1e-3].summary()


def test_a_nondeterministic_model_fails_its_controls():
    class Noisy(nn.Linear):
        calls = 0

        def forward(self, x):
            Noisy.calls += 1
            return super().forward(x) + Noisy.calls * 1e-3

    report = numerical_sensitivity(lambda: Noisy(8, 4), noise_batch, lambda p: torch.optim.SGD(p, lr=0.1), 5)
    assert not report.controls_hold
    assert "NO, not deterministic" in report.summary()


def test_probe_leaves_the_users_run_alone():
    def run(with_probe):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        probe = SensitivityProbe(model, lambda p: torch.optim.SGD(p, lr=0.1), every=4) if with_probe else None
        for step in range(12):
            x, y = noise_batch(step)
            if probe:
                probe.step(lambda m, x=x, y=y: nn.functional.cross_entropy(m(x), y))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()]), probe

    plain, _ = run(False)
    probed, probe = run(True)
    assert torch.equal(plain, probed)
    assert probe.report().steps.tolist() == [4, 8, 12]


def test_report_scores_settings_and_summary():
    report = numerical_sensitivity(
        chaotic_network,
        [noise_batch(0), noise_batch(1)],
        lambda p: torch.optim.SGD(p, lr=0.1),
        6,
        evaluate=lambda m: 0.5,
    )
    np.testing.assert_array_equal(report.scores, 0.5)
    assert report.score_spread == 0
    assert report.settings["dtype"] == "float32"
    assert "k=3" in report.summary()


def test_global_generator_is_untouched():
    before = torch.get_rng_state()
    numerical_sensitivity(chaotic_network, noise_batch, lambda p: torch.optim.SGD(p, lr=0.1), 2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; pass a whole number of at least 1"),
        ({"steps": 2.5}, r"steps is 2.5; pass a whole number of at least 1"),
        ({"every": 1.5}, r"every is 1.5; pass a whole number of at least 1"),
        ({"perturbations": ()}, "perturbations is empty"),
        ({"perturbations": (3, 5)}, "must start with the baseline"),
        ({"data": iter([noise_batch(0)])}, "data ran out after 1 of 3 steps"),
    ],
)
def test_bad_input(change, message):
    arguments = {"data": noise_batch, "steps": 3, "perturbations": (1, 3)} | change
    with pytest.raises(ValueError, match=message):
        numerical_sensitivity(chaotic_network, optimizer_fn=lambda p: torch.optim.SGD(p, lr=0.1), **arguments)


def test_as_a_context_the_probe_measures_the_last_step_too():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with SensitivityProbe(model, optimizer, (1, 1, 3), every=4) as probe:
        for _ in range(10):
            probe.step(lambda m: m(torch.ones(1, 2)).square().sum())
    assert probe.report().steps.tolist() == [4, 8, 10]
    report = numerical_sensitivity(
        lambda: nn.Linear(2, 1),
        [(torch.ones(4, 2), torch.zeros(4, 1))],
        lambda p: torch.optim.SGD(p, lr=0.1),
        steps=3,
        loss_fn=nn.functional.mse_loss,
        every=5,
    )
    assert report.steps.tolist() == [3]


def test_controls_that_were_not_run_are_not_said_to_hold():
    probe = SensitivityProbe(nn.Linear(2, 1), lambda p: torch.optim.SGD(p, lr=0.1), (1, 3))
    probe.step(lambda m: m(torch.ones(1, 2)).square().sum())
    assert "null controls exactly equal: none was run" in probe.report().summary()


def test_a_batch_of_keywords_takes_the_loss_that_the_model_returns():
    class Model(nn.Module):
        """As Hugging Face's models: keywords in, an object with a loss out."""

        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(10, 4), nn.Linear(4, 10)

        def forward(self, input_ids, labels):
            logits = self.head(self.table(input_ids)).flatten(0, 1)
            return SimpleNamespace(loss=nn.functional.cross_entropy(logits, labels.flatten()))

    tokens = torch.arange(12).reshape(3, 4) % 10
    settings = {
        "model_fn": Model,
        "data": [{"input_ids": tokens, "labels": tokens.roll(1, 1)}],
        "optimizer_fn": lambda p: torch.optim.AdamW(p, lr=0.01),
        "steps": 5,
    }
    report, same = (
        numerical_sensitivity(**settings, loss_fn=f) for f in (None, lambda outputs, _: outputs.loss)
    )
    assert report.controls_hold
    assert report.injected
    np.testing.assert_array_equal(report.divergence, same.divergence)


def test_probe_without_measurements():
    probe = SensitivityProbe(nn.Linear(1, 1), lambda p: torch.optim.SGD(p, lr=0.1), every=5)
    with pytest.raises(ValueError, match="nothing measured yet"):
        probe.report()
    with pytest.raises(ValueError, match="every is 0; pass a whole number of at least 1"):
        SensitivityProbe(nn.Linear(1, 1), lambda p: torch.optim.SGD(p, lr=0.1), every=0)
    with pytest.raises(ValueError, match="perturbations=3 is one number"):
        SensitivityProbe(nn.Linear(1, 1), lambda p: torch.optim.SGD(p, lr=0.1), 3)


def test_growth_is_per_step_and_begins_above_rounding_level():
    """A plateau at rounding level, then growth by half an e-fold in each step, measured every fifth."""
    probe = SensitivityProbe(nn.Linear(1, 1).double(), lambda p: PerturbedSGD(p, lr=0.1), (1, 3), every=5)
    curve = np.concatenate([np.full(20, 1e-17), 1e-14 * np.exp(0.5 * 5 * np.arange(14))])
    probe._steps = [5 * (i + 1) for i in range(len(curve))]
    probe._total = [[0.0, value] for value in curve]
    probe._by_layer = [[{}, {}]] * len(curve)
    report = probe.report()
    assert report.growth_rates[0] == pytest.approx(0.5, rel=1e-9)
    assert report.saturation[0] == pytest.approx(curve[-3:].mean())


def test_other_optimisers_are_perturbed_at_the_gradient():
    """There every weight is reached; a step of 1e-6 beside a weight of 1 hides what follows it."""
    model = nn.Linear(64, 1, bias=False)
    nn.init.ones_(model.weight)
    probe = SensitivityProbe(model, lambda p: torch.optim.Adam(p, lr=1e-6), (1, 3))
    probe.step(lambda m: (m.weight * torch.linspace(1.1, 1.9, 64)).sum())
    kept = [optimizer.state_dict()["state"][0]["exp_avg"] for optimizer in probe.copies.optimizers]
    assert not torch.equal(*kept)


class OwnLoss(nn.Module):
    """Takes keywords and returns its loss beside its outputs, as models of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x, labels=None):
        logits = self.linear(x)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


@pytest.mark.parametrize("form", ["mapping", "keywords", "arguments"])
def test_forms_of_batches(form):
    """The same copies as those of a probe that is shown the losses."""
    x, y = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2
    batch, loss_fn = {
        "mapping": ({"x": x, "labels": y}, lambda outputs, _: outputs["loss"]),
        "keywords": (({"x": x}, y), lambda outputs, y: nn.functional.cross_entropy(outputs["logits"], y)),
        "arguments": (((x,), y), lambda outputs, y: nn.functional.cross_entropy(outputs["logits"], y)),
    }[form]
    torch.manual_seed(0)
    model = OwnLoss()
    found = numerical_sensitivity(
        lambda: copy.deepcopy(model),
        [batch],
        lambda p: torch.optim.SGD(p, lr=0.5),
        5,
        loss_fn=loss_fn,
        evaluate=lambda m: m.linear.weight.sum().item(),
    )
    probe = SensitivityProbe(model, torch.optim.SGD(model.parameters(), lr=0.5), (1, 1, 2, 3, 5))
    for _ in range(5):
        probe.step(lambda m: nn.functional.cross_entropy(m.linear(x), y))
    expected = probe.report(lambda m: m.linear.weight.sum().item())
    assert [c.score for c in found.copies] == [c.score for c in expected.copies]


@pytest.mark.parametrize("batch", [(1, 2, 3), torch.ones(3)])
def test_batches_of_another_form_are_refused(batch):
    with pytest.raises(TypeError, match=r"a batch is a (tuple|Tensor); pass pairs"):
        numerical_sensitivity(lambda: nn.Linear(2, 2), [batch], lambda p: torch.optim.SGD(p, lr=0.1), 2)


@pytest.mark.parametrize("pair", [(2e38, 2.5e38), (3e38, -3e38), (1e-45, -1e-45)])
def test_divergence_of_the_largest_and_smallest_weights(pair):
    """The sum of two weights overflows in float32; float64 holds it."""
    a, b = (torch.tensor([w, 1.0]) for w in pair)
    total, _ = layer_divergence({"w": a}, {"w": b}, Rooms())["w"]
    exact = (2 * (a.double() - b.double()).abs() / (a.double().abs() + b.double().abs())).sum().item()
    assert total == pytest.approx(exact, rel=1e-6)
    wide = [w.double().numpy() * 2.0 ** (896 if pair[0] > 1 else 0) for w in (a, b)]  # in float64 likewise
    assert average_relative_l1(*wide) == pytest.approx(exact / 2, rel=1e-6)
