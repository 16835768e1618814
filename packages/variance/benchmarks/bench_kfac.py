"""K-FAC and EK-FAC steps against an SGD step on 784-256-256-10, B = 128.

plain: gradient and preconditioning. amortised: the mean over 100 steps with factors every 10 steps and
eigenbases once, as in the paper's schedule. rotations: preconditioning alone, which bounds `plain` from
below; its arithmetic, and how fast it is done, are printed beside it.
"""

import argparse
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from sections import interleaved, ratios, write_section

from variance.data import TensorPopulation
from variance.estimators import EKFAC, KFAC, SGB, GradientEstimator
from variance.losses import cross_entropy
from variance.objective import Objective, Point
from variance.paper.models import mlp
from variance.paper.optimizer import Optimizer

SIZES = (784, 256, 256, 10)
BATCH = 128
TARGETS = {"K-FAC plain": 3.5, "K-FAC amortised": 5.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = mlp(*SIZES)
    population = TensorPopulation(torch.randn(BATCH, 784), torch.randint(10, (BATCH,)))
    batch = population.fetch(torch.arange(BATCH))
    objective, point = Objective(model, cross_entropy), Point.of(model)
    optimizer = Optimizer(point, torch.optim.SGD(model.parameters(), lr=1e-6))
    kfac, ekfac = KFAC(objective), EKFAC(objective)

    def step(estimator: GradientEstimator) -> Callable[[], object]:
        return lambda: optimizer.apply(estimator.direction(point, batch).values)

    frequent: dict[str, list[float]] = {kfac.name: [], ekfac.name: []}
    infrequent: dict[str, list[float]] = {kfac.name: [], ekfac.name: []}
    for estimator in (kfac, ekfac):
        for repeat in range(6):
            started = time.process_time()
            estimator.on_frequent(repeat, point, batch)
            middle = time.process_time()
            estimator.on_infrequent(repeat, point, population)
            frequent[estimator.name].append(middle - started)
            infrequent[estimator.name].append(time.process_time() - middle)
    gradient = objective.gradient(point, batch)[0]
    times = interleaved(
        {
            "SGD": step(SGB(objective)),
            "K-FAC plain": step(kfac),
            "EK-FAC plain": step(ekfac),
            "rotations": lambda: kfac.precondition(point, gradient),
        },
        arguments.repeats,
    )
    for name in (kfac.name, ekfac.name):
        extra = min(frequent[name]) / 10 + min(infrequent[name]) / 100
        times[f"{name} amortised"] = [value + extra for value in times[f"{name} plain"]]
    found = ratios(times, "SGD")
    for name, row in found.items():
        bounds = f"[{row['low']:.2f}, {row['high']:.2f}]"
        print(f"{name:<20}{row['best']:6.2f}  median {row['ratio']:.2f} {bounds}  target {TARGETS.get(name)}")
    work = {"SGD": sgd_flops(), "rotations": rotation_flops()}
    speed = {name: flops / min(times[name]) for name, flops in work.items()}
    for name, flops in work.items():
        print(f"{name:<20}{flops / 1e6:6.0f} Mflop at {speed[name] / 1e9:.0f} Gflop/s")
    write_section(
        "kfac",
        {
            "unit": "one SGD step, process time",
            "ratios": found,
            "targets": TARGETS,
            "flops": work,
            "flops_per_second": speed,
        },
    )


def rotation_flops() -> int:
    """Return the operations of Q_G (Q_G^T V Q_A) Q_A^T: two products of each kind per layer."""
    return sum(2 * 2 * o * (i + 1) * (o + i + 1) for i, o in pairwise(SIZES))


def sgd_flops() -> int:
    """Return the operations of the products of one forward and backward pass; the data need no gradient."""
    return sum(3 * 2 * BATCH * i * o for i, o in pairwise(SIZES)) - 2 * BATCH * SIZES[0] * SIZES[1]


if __name__ == "__main__":
    main()
