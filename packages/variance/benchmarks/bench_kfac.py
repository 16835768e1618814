"""K-FAC and EK-FAC steps against an SGD step on 784-256-256-10, B = 128.

plain: gradient and preconditioning. amortised: the mean over 100 steps with factors every 10 steps and
eigenbases once, as in the paper's schedule.
"""

import argparse
import time
from collections.abc import Callable

import torch
from sections import interleaved, ratios, write_section

from variance.data import TensorPopulation
from variance.estimators import EKFAC, KFAC, SGB, GradientEstimator
from variance.losses import cross_entropy
from variance.models import mlp
from variance.objective import Objective, Point
from variance.optimizer import Optimizer

TARGETS = {"K-FAC plain": 3.5, "K-FAC amortised": 5.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = mlp(784, 256, 256, 10)
    population = TensorPopulation(torch.randn(128, 784), torch.randint(10, (128,)))
    batch = population.fetch(torch.arange(128))
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
    times = interleaved(
        {"SGD": step(SGB(objective)), "K-FAC plain": step(kfac), "EK-FAC plain": step(ekfac)},
        arguments.repeats,
    )
    for name in (kfac.name, ekfac.name):
        extra = sorted(frequent[name])[3] / 10 + sorted(infrequent[name])[3] / 100
        times[f"{name} amortised"] = [value + extra for value in times[f"{name} plain"]]
    found = ratios(times, "SGD")
    for name, row in found.items():
        bounds = f"[{row['low']:.2f}, {row['high']:.2f}]"
        print(f"{name:<20}{row['ratio']:6.2f}  {bounds}  target {TARGETS.get(name)}")
    write_section("kfac", {"unit": "one SGD step, process time", "ratios": found, "targets": TARGETS})


if __name__ == "__main__":
    main()
