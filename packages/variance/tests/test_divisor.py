"""What examples count for in a cross-entropy, beside the formula that torch documents."""

import pytest
import torch
import torch.nn.functional as F

from variance.noise_scale.divisor import shares


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
@pytest.mark.parametrize("num_classes", [2, 3, 10, 400])
def test_targets_count_for_their_weight_over_the_sum_of_all(
    num_classes: int, spread: float, smoothing: float
) -> None:
    source = torch.Generator().manual_seed(num_classes)
    weights = torch.rand(num_classes, generator=source) + 0.1
    logits = (spread * torch.randn(64, num_classes, generator=source)).requires_grad_()
    targets = torch.randint(num_classes, (64,), generator=source)
    F.cross_entropy(logits, targets, weights, label_smoothing=smoothing).backward()
    assert logits.grad is not None
    (found,) = shares(logits.detach(), logits.grad)
    expected = ((1 - smoothing) * weights[targets] / weights[targets].sum()).double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert float(found.sum()) == pytest.approx(1 - smoothing, rel=1e-4)


@pytest.mark.parametrize("count", [2, 3, 4, 6])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_one_of_the_readings_of_a_few_positions_is_right(num_classes: int, count: int) -> None:
    """The numbers of four positions and two classes fit weights with smoothing, whatever they come from."""
    source = torch.Generator().manual_seed(count)
    weights = torch.rand(num_classes, generator=source) + 0.1
    logits = torch.randn(count, num_classes, generator=source).requires_grad_()
    targets = torch.randint(num_classes, (count,), generator=source)
    F.cross_entropy(logits, targets, weights).backward()
    assert logits.grad is not None
    expected = (weights[targets] / weights[targets].sum()).double()
    found = shares(logits.detach(), logits.grad)
    assert any(torch.allclose(one, expected, rtol=1e-3, atol=1e-5) for one in found)


def test_masked_positions_count_for_nothing() -> None:
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 5, 11, generator=source).requires_grad_()
    targets = torch.randint(11, (8, 5), generator=source)
    targets[targets > 5] = -100
    F.cross_entropy(logits.mT, targets, label_smoothing=0.1).backward()
    assert logits.grad is not None
    (found,) = shares(logits.detach(), logits.grad)
    kept = (targets >= 0).double()
    torch.testing.assert_close(found, 0.9 * kept.sum(1) / kept.sum(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("loss", [F.mse_loss, lambda o, t: F.cross_entropy(o, t), F.l1_loss])
def test_other_losses_tell_nothing(loss) -> None:  # type: ignore[no-untyped-def]
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 5, generator=source).requires_grad_()
    loss(logits, torch.rand(64, 5, generator=source).softmax(1)).backward()
    assert logits.grad is not None
    assert shares(logits.detach(), logits.grad) == []
    assert shares(logits.detach()[:, 0], logits.grad[:, 0]) == []
