"""Which steps of a training loop count for the noise scale, are left out, or are refused."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from variance.errors import ConfigError
from variance.noise_scale import ExampleMeter, NoiseMeter, NoiseScale


def test_what_a_step_must_hold() -> None:
    model = nn.Linear(2, 1)
    meter = NoiseMeter(model, 4)
    model(torch.ones(1, 2)).sum().backward()
    with pytest.raises(ConfigError, match="at least two micro-batches"):
        meter.step()
    with pytest.raises(ConfigError, match="needs at least 3"):
        meter.result()
    with pytest.raises(ConfigError, match="micro_batch_size is 0"):
        NoiseMeter(model, 0)
    with pytest.raises(ConfigError, match=r"population is 10\.5; pass a whole number"):
        NoiseMeter(model, 4, population=10.5)
    with pytest.raises(ConfigError, match=r"model is a SGD; pass a torch\.nn\.Module"):
        NoiseMeter(torch.optim.SGD(model.parameters(), 0.1), 4)
    with pytest.raises(ConfigError, match="loss_scale is 0; it must be positive"):
        meter.step(loss_scale=0)
    with pytest.raises(ConfigError, match="last is -1"):
        meter.result(-1)


def looped(
    sizes: list[int], change: Callable[[int, nn.Module], None], steps: int = 60, **options: Any
) -> NoiseScale:
    """A loop of unequal micro-batches, with something done between backward passes and `step`."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(6, 3), torch.randn(96, 6), torch.randint(3, (96,))
    generator = torch.Generator().manual_seed(1)
    with NoiseMeter(model, 4, divided=True, **options) as meter:
        for step in range(steps):
            model.zero_grad()
            parts = torch.randint(96, (sum(sizes),), generator=generator).split(sizes)
            for part in parts:
                (F.cross_entropy(model(x[part]), y[part]) / len(sizes)).backward()
            change(step, model)
            meter.step()
        return meter.result()


def nothing(step: int, model: nn.Module) -> None: ...


def test_steps_with_unequal_micro_batches_are_left_out() -> None:
    with (
        pytest.warns(UserWarning, match="not all in micro-batches of micro_batch_size"),
        pytest.raises(ConfigError, match="0 steps were taken in"),
    ):
        looped([4, 4, 1], nothing)
    with pytest.warns(UserWarning, match="none of which is micro_batch_size=4"):
        looped([8, 8], nothing)


@pytest.mark.parametrize("kind", [NoiseMeter, ExampleMeter])
@pytest.mark.parametrize("options", [{}, {"population": 9}], ids=["endless", "epochs"])
def test_the_rest_of_an_epoch_is_left_out_and_counted(kind: Any, options: dict[str, int]) -> None:
    """Nine examples in steps of eight: one is left, in one micro-batch."""
    found = []
    for has_rest in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(6, 3)
        meter = kind(model, 4, **options) if kind is NoiseMeter else kind(model, **options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for epoch in torch.randn(3, 9, 6):
                for batch in epoch.split(8)[: 1 + has_rest]:
                    model.zero_grad()
                    for part in batch.split(4 if kind is NoiseMeter else 8):
                        model(part).square().mean().backward()
                    meter.step()
        assert len(caught) == has_rest  # once for all epochs
        assert all("leaves out steps whose examples are" in str(one.message) for one in caught)
        assert meter.num_skipped == 3 * has_rest
        found.append(meter.state_dict()["traces"])
    assert torch.equal(*found)


def test_gradients_that_are_not_finite_are_left_out() -> None:
    def spoil(step: int, model: nn.Module) -> None:
        with torch.no_grad():  # the gradients of step 4 are those of the weights that step 3 leaves behind
            model.weight.fill_(torch.nan if step == 3 else 0.1)

    with pytest.warns(UserWarning, match="not finite"):
        found = looped([4] * 4, spoil)
    assert found.num_skipped == 1
    assert found.num_steps == 59
    assert np.isfinite(found.noise_scale)


def test_a_sum_that_overflows_is_left_out() -> None:
    """Each float16 gradient is finite, their sum is not."""
    model = nn.Linear(4, 1, bias=False).half()
    meter = NoiseMeter(model, micro_batch_size=4)
    for _ in range(2):
        (model(torch.ones(4, 4).half()).mean() * 40000).backward()
    with pytest.warns(UserWarning, match="not finite"):
        meter.step()
    assert meter.num_skipped == 1


def test_which_axis_counts_examples_is_kept() -> None:
    """Five sequences of eight tokens are no micro-batch of eight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    meter = NoiseMeter(model, micro_batch_size=8)
    for size in (8, 8, 5):
        model(torch.randint(5, (size, 8))).square().mean().backward()
    with pytest.warns(UserWarning, match="not all in micro-batches"):
        meter.step()
    assert meter.num_skipped == 1


def test_as_many_features_as_examples_are_no_examples() -> None:
    """Eight rows of four features are no micro-batch of four, though that number is among their axes."""
    model = nn.Linear(4, 3)
    meter = NoiseMeter(model, micro_batch_size=4)
    for part in torch.randn(16, 4).split(8):
        model(part).square().mean().backward()
    with pytest.warns(UserWarning, match="none of which is micro_batch_size=4"):
        meter.step()


@pytest.mark.parametrize(("last", "skipped"), [(4, 0), (1, 1)])
@pytest.mark.filterwarnings("ignore:NoiseMeter leaves out")
def test_forward_passes_without_backward_ones_do_not_matter(last: int, skipped: int) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    meter = NoiseMeter(model, micro_batch_size=4)
    for size in (4, 4, last):
        model(torch.randn(32, 6))
        model(torch.randn(size, 6)).square().mean().backward()
    meter.step()
    assert meter.num_skipped == skipped


def test_gradients_that_are_only_looked_at_do_not_count() -> None:
    def look(step: int, model: nn.Module) -> None:
        torch.autograd.grad(model(torch.ones(4, 6)).sum(), list(model.parameters()))

    assert looped([4] * 4, look).noise_scale == looped([4] * 4, nothing).noise_scale


@pytest.mark.parametrize(
    "change",
    [
        lambda step, model: nn.utils.clip_grad_norm_(model.parameters(), 0.1),
        lambda step, model: nn.utils.clip_grad_value_(model.parameters(), 0.01),
        lambda step, model: [p.grad.mul_(2) for p in model.parameters()],
        lambda step, model: [setattr(p, "grad", p.grad / 2) for p in model.parameters()],
    ],
    ids=["norm", "value", "unscaled", "replaced"],
)
def test_gradients_changed_before_the_step_are_refused(change: Callable[[int, nn.Module], None]) -> None:
    with pytest.raises(ConfigError, match="was changed after its last backward pass"):
        looped([4] * 4, change)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model[0].zero_grad(),
        lambda model: model[1].zero_grad(),
        lambda model: model[1].zero_grad(set_to_none=False),
        lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.1),
    ],
    ids=["first layer", "last layer", "last layer set to zero", "clipped"],
)
def test_gradients_changed_between_micro_batches_are_refused(change: Callable[[nn.Module], None]) -> None:
    """The sum is not that of all."""
    model, x = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), torch.randn(16, 6)
    with NoiseMeter(model, 4) as meter:
        for part in x.split(4):
            change(model)
            model(part).square().mean().backward()
        with pytest.raises(ConfigError, match="changed or cleared between two backward passes"):
            meter.step()


@pytest.mark.parametrize("set_to_none", [False, True])
@pytest.mark.parametrize("kind", [NoiseMeter, ExampleMeter])
def test_a_step_is_given_up_by_clearing_all_gradients(kind: Any, set_to_none: bool) -> None:
    """Before the loop, in mid-run, and twice in a row: the steps that count are those of a loop without."""
    found = []
    for gives_up in (True, False):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), torch.randn(6, 8, 6)
        size = 4 if kind is NoiseMeter else 8
        with kind(model, 4) if kind is NoiseMeter else kind(model) as meter:
            model[1].bias.requires_grad_(False).grad = torch.ones(3)  # left from before: of no step
            for i, batch in enumerate(x):
                is_given_up = i in (0, 3, 4)
                if is_given_up and not gives_up:
                    continue
                torch.optim.SGD([p for p in model.parameters() if p.requires_grad]).zero_grad(set_to_none)
                for part in batch[:5].split(5) if is_given_up else batch.split(size):
                    model(part).square().mean().backward()
                if not is_given_up:
                    meter.step()
            found.append(meter.state_dict()["traces"])
            assert meter.num_skipped == 0
    assert torch.equal(*found)


@pytest.mark.parametrize("set_to_none", [False, True])
def test_one_micro_batch_after_each_clearing_is_refused(set_to_none: bool) -> None:
    """As where `step` is called once for several steps of the optimiser."""
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    with NoiseMeter(model, 4) as meter:
        for part in torch.randn(16, 6).split(4):
            model.zero_grad(set_to_none)
            model(part).square().mean().backward()
        with pytest.raises(ConfigError, match="at least two micro-batches"):
            meter.step()


@pytest.mark.parametrize("is_same_graph", [False, True])
def test_what_follows_a_clearing_is_one_pass_of_its_own(is_same_graph: bool) -> None:
    """Neither a second backward pass of the graph that was given up, nor two that were prepared before."""
    model, x = nn.Linear(6, 3), torch.randn(3, 8, 6)
    with ExampleMeter(model) as meter:
        losses = [model(part).square().mean() for part in x]
        losses[0].backward(retain_graph=True)
        model.zero_grad()
        for loss in losses[:1] if is_same_graph else losses[1:]:
            loss.backward()
        with pytest.raises(ConfigError, match=f"{0 if is_same_graph else 2} forward and backward passes"):
            meter.step()


@pytest.mark.parametrize("is_clipped", [False, True])
def test_gradients_that_are_views_of_one_tensor(is_clipped: bool) -> None:
    """Adding to one of them counts as a change of all."""

    def in_one_tensor(step: int, model: nn.Module) -> None:
        flat = torch.zeros(sum(p.numel() for p in model.parameters()))
        for p, view in zip(
            model.parameters(), flat.split([p.numel() for p in model.parameters()]), strict=True
        ):
            p.grad = view.view_as(p)

    model, plain = (nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    x = torch.randn(3, 8, 6)
    found = []
    for one in (model, plain):
        with NoiseMeter(one, micro_batch_size=2) as meter:
            for step in range(3):
                if one is model:
                    in_one_tensor(step, one)
                else:
                    one.zero_grad()
                for part in x[step].split(2):
                    one(part).square().mean().backward()
                if is_clipped and one is model:
                    nn.utils.clip_grad_norm_(one.parameters(), 1e-3)
                    with pytest.raises(ConfigError, match="was changed after its last backward pass"):
                        meter.step()
                    return
                meter.step()
            found.append(meter.result())
    assert found[0] == found[1]


def test_gradients_of_the_step_before_are_refused() -> None:
    model, x = nn.Linear(6, 3), torch.randn(8, 6)
    with NoiseMeter(model, 4) as meter:
        for part in x.split(4):
            model(part).square().mean().backward()
        meter.step()
        for part in x.split(4):
            model(part).square().mean().backward()
        with pytest.raises(ConfigError, match="were not cleared"):
            meter.step()


def test_norms_need_two_micro_batches_and_every_parameter() -> None:
    model = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    with NoiseMeter(model, 4, norms_every=1) as meter:
        for part in (0, 1, 1):
            model[part](torch.randn(4, 2)).sum().backward()
        with pytest.raises(ConfigError, match="is not used in all"):
            meter.step()


class Repeated(nn.Module):
    """One layer, used three times under checkpoints."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.first, self.layer, self.use_reentrant = nn.Linear(4, 4), nn.Linear(4, 4), use_reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for _ in range(3):
            x = checkpoint(self.layer, x, use_reentrant=self.use_reentrant).tanh()
        return x


def test_one_backward_pass_for_each_forward_pass() -> None:
    """Two losses of one graph, or a layer shared by reentrant checkpoints, are no micro-batches."""
    torch.manual_seed(0)
    for use_reentrant, num_losses in ((False, 2), (True, 1)):
        model = Repeated(use_reentrant)
        meter = NoiseMeter(model, micro_batch_size=4)
        for part in torch.randn(8, 4).split(4):
            out = model(part)
            for _ in range(num_losses):
                out.square().mean().backward(retain_graph=True)
        with pytest.raises(ConfigError, match="arrived from 2 forward passes"):
            meter.step()
        meter.close()


def test_complex_parameters_are_refused_by_name() -> None:
    model = nn.Linear(4, 3, dtype=torch.complex64)
    with pytest.raises(ConfigError, match="parameter 'weight' is complex"):
        NoiseMeter(model, micro_batch_size=4)


def test_a_parameter_that_is_frozen_no_longer_is_not_overlooked() -> None:
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 3))
    meter = NoiseMeter(model, micro_batch_size=4)
    model[0].requires_grad_(True)
    for part in torch.randn(8, 4).split(4):
        model(part).square().mean().backward()
    with pytest.raises(ConfigError, match=r"parameter '0\.weight' was frozen when the meter was made"):
        meter.step()
    model[0] = nn.Linear(4, 4)  # as when a head is replaced
    with pytest.raises(ConfigError, match=r"parameter '0\.weight' was .* is a new one"):
        meter.step()


def test_noise_below_rounding_is_said() -> None:
    model = nn.Linear(3, 1)
    meter = NoiseMeter(model, micro_batch_size=4)
    for _ in range(2):
        model(torch.ones(4, 3)).square().mean().backward()
    with pytest.warns(UserWarning, match=r"below the rounding of gradients in torch\.float32"):
        meter.step()


@pytest.mark.parametrize("kind", [NoiseMeter, ExampleMeter])
def test_what_older_hooks_do_to_a_gradient_is_a_change(kind: Any) -> None:
    """A hook that was there before the meter halves or clears gradients: the variance was that of others."""

    def halve(p: Any) -> None:
        p.grad.mul_(0.5)

    def clear(p: Any) -> None:
        p.grad.zero_()

    def replace(p: Any) -> None:
        p.grad = p.grad / 2

    for act in (halve, clear, replace):
        model, x = nn.Linear(6, 3), torch.randn(8, 6)
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(act)
        with kind(model, 4) if kind is NoiseMeter else kind(model) as meter:
            for part in x.split(4) if kind is NoiseMeter else [x]:
                model(part).square().mean().backward()
            with pytest.raises(
                ConfigError, match=r"was changed|changed or cleared|at least two micro-batches"
            ):
                meter.step()


@pytest.mark.parametrize("is_before", [True, False])
def test_what_hooks_of_the_backward_pass_make_is_the_gradient(is_before: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(6, 3), torch.randn(5, 8, 6)

    def traces(factor: float) -> torch.Tensor:
        copied = nn.Linear(6, 3)
        copied.load_state_dict(model.state_dict())

        def scale() -> None:
            for p in copied.parameters():
                p.register_hook(lambda gradient: factor * gradient)

        if is_before:
            scale()
        with NoiseMeter(copied, 4) as meter:
            if not is_before:
                scale()
            for batch in x:
                copied.zero_grad()
                for part in batch.split(4):
                    copied(part).square().mean().backward()
                meter.step()
            found: torch.Tensor = meter.state_dict()["traces"]
            return found

    torch.testing.assert_close(traces(0.5), 0.25 * traces(1.0))


def test_older_hooks_that_only_look_do_not_matter() -> None:
    model, x, seen = nn.Linear(6, 3), torch.randn(8, 6), []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: seen.append(float(p.grad.norm())))
    with NoiseMeter(model, 4) as meter:
        for part in x.split(4):
            model(part).square().mean().backward()
        meter.step()
    assert len(seen) == 4
