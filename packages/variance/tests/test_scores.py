"""Scores of a captured batch, their memory and its normalisations."""

import pytest
import torch

from variance.errors import ConfigError
from variance.sampling.scores import ScoreMemory, score

RTOL = 1e-9  # float64, sums of a few hundred terms


def test_scores_equal_their_dense_definitions(problem) -> None:  # type: ignore[no-untyped-def]
    batch = problem.population.fetch(torch.arange(12))
    capture = problem.objective.capture(problem.point, batch)
    g = problem.gradients()[:12]
    mean = g.mean(0)
    expected = {
        "loss": capture.losses,
        "norm": g.norm(dim=1),
        "alignment": (g @ mean).abs(),
        "positive-alignment": (g @ mean).clamp_min(0),
        "one": torch.ones(12),
    }
    for kind, value in expected.items():
        torch.testing.assert_close(score(kind, capture, mean), value, rtol=RTOL, atol=1e-12)  # type: ignore[arg-type]
    draws = [score("random", capture, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*draws)
    with pytest.raises(ConfigError, match="needs mean_gradient"):
        score("alignment", capture)
    with pytest.raises(ConfigError, match=r"Unknown score 'size'.*positive-alignment"):
        score("size", capture)  # type: ignore[arg-type]


def test_memory_is_bias_corrected_and_resumes() -> None:
    memory, twin = ScoreMemory(3, decay=0.5), ScoreMemory(3, decay=0.5)
    memory.update(torch.tensor([0, 1]), torch.tensor([2.0, 4.0]))
    memory.update(torch.tensor([0]), torch.tensor([4.0]))
    assert memory.read().tolist() == pytest.approx([(0.25 * 2 + 0.5 * 4) / 0.75, 4.0, float("inf")])
    twin.load_state_dict(memory.state_dict())
    assert torch.equal(twin.read(), memory.read())
    changes = ScoreMemory(1, difference=True)
    for value in (2.0, 5.0):
        changes.update(torch.tensor([0]), torch.tensor([value]))
    assert changes.read().tolist() == [3.0]


def test_normalisations() -> None:
    memory = ScoreMemory(5)
    memory.update(torch.arange(4), torch.tensor([1.0, 3.0, 2.0, 2.0]))
    assert memory.read("sum")[:4].tolist() == [1 / 8, 3 / 8, 2 / 8, 2 / 8]
    assert memory.read("batch")[:4].tolist() == [0.5, 1.5, 1.0, 1.0]
    assert memory.read("class", torch.tensor([0, 0, 1, 1, 1]))[:4].tolist() == [0.25, 0.75, 0.5, 0.5]
    assert float(memory.read("softmax")[:4].sum()) == pytest.approx(1)
    assert memory.read("sum")[4] == float("inf")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ScoreMemory(0), "num_examples is 0; pass a whole number"),
        (lambda: ScoreMemory(2).update(torch.tensor([0, 0]), torch.ones(2)), "indices repeat"),
        (lambda: ScoreMemory(2).read("rank"), "Unknown normalisation 'rank'"),
        (lambda: ScoreMemory(2).read("class"), "needs classes, one per example"),
    ],
)
def test_bad_input(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        call()
