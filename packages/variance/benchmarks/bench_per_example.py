"""Cost of clustering and exact statistics, in units of one forward+backward pass of the same batch.

Prints and writes `results/bench.json`. Process time, one thread, medians of interleaved repeats.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from gdyn_common.provenance import collect
from variance.gradient_clustering.centres import ClusteringOptions, RunningSums, squared_distances
from variance.losses import cross_entropy
from variance.models import ResNet, mlp, small_cnn
from variance.per_example import quantities, second_moments
from variance.per_example.capture import capture
from variance.sampling import StratifiedSampler

BATCH, CLUSTERS = 128, 128
TARGETS = {
    "assign": {"mlp": 1.3, "cnn": 2.0, "resnet8": 1.8},
    "iteration": {"mlp": 1.6, "cnn": 2.5, "resnet8": 2.3},
    "exact_avg_var": {"mlp": 1.2, "cnn": 1.6, "resnet8": 1.5},
    "second_moment": {"mlp": 1.6, "cnn": 1.7, "resnet8": 1.6},
}


def problems() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    return {
        "mlp": (mlp(784, 1024, 1024, 10), torch.randn(BATCH, 784)),
        "cnn": (small_cnn(), torch.randn(BATCH, 1, 28, 28)),
        "resnet8": (ResNet(8), torch.randn(BATCH, 3, 32, 32)),
    }


def tasks(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], object]]:
    options = ClusteringOptions()
    start = RunningSums(CLUSTERS, options)
    start.add(capture(model, cross_entropy, x, y, weights_only=True), torch.arange(CLUSTERS) % CLUSTERS)
    centres = start.means(torch.ones(CLUSTERS, dtype=torch.long))

    def forward_backward() -> None:
        cross_entropy(model(x), y).mean().backward()
        model.zero_grad(set_to_none=True)

    def assign() -> object:
        found = capture(model, cross_entropy, x, y, weights_only=True)
        return squared_distances(found, centres, options).argmin(1)

    def iteration() -> None:
        found = capture(model, cross_entropy, x, y, weights_only=True)
        ids = squared_distances(found, centres, options).argmin(1)
        RunningSums(CLUSTERS, options).add(found, ids)

    return {
        "forward_backward": forward_backward,
        "assign": assign,
        "iteration": iteration,
        "exact_avg_var": lambda: quantities.trace_of_covariance(capture(model, cross_entropy, x, y)),
        "second_moment": lambda: second_moments(model, cross_entropy, x, y),
        "gram": lambda: quantities.gram(capture(model, cross_entropy, x, y)),
    }


def vmap_second_moment(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], object]:
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(values: dict[str, torch.Tensor], example: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return cross_entropy(functional_call(model, values, (example[None],)), target[None]).sum()

    per_example = vmap(grad(loss), in_dims=(None, 0, 0))
    return lambda: [value.square().sum(0) for value in per_example(parameters, x, y).values()]


def interleaved(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(repeats + 1):
        for name, job in jobs.items():
            started = time.process_time()
            job()
            if repeat:
                times[name].append(time.process_time() - started)
    return times


def sampler_times() -> dict[str, float]:
    assignment = torch.randint(128, (1_000_000,), generator=torch.Generator().manual_seed(0))
    started = time.process_time()
    sampler = StratifiedSampler(assignment, 0)
    build = time.process_time() - started
    started = time.process_time()
    for _ in range(1000):
        sampler.draw(128)
    return {"build_s": build, "per_index_us": (time.process_time() - started) / 128_000 * 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peers", action="store_true", help="also time vmap(grad), which is slow on the MLP")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, (model, x) in problems().items():
        y = torch.randint(10, (BATCH,))
        jobs = tasks(model, x, y)
        if arguments.peers:
            jobs["vmap_second_moment"] = vmap_second_moment(model, x, y)
        times = interleaved(jobs, arguments.repeats)
        unit = statistics.median(times.pop("forward_backward"))
        for task, values in times.items():
            ratios = sorted(value / unit for value in values)
            target = TARGETS.get(task, {}).get(name)
            row = {
                "network": name,
                "task": task,
                "ratio": statistics.median(ratios),
                "low": ratios[0],
                "high": ratios[-1],
            }
            rows.append({**row, "target": target})
            print(
                f"{name:<10}{task:<20}{row['ratio']:6.2f}  [{row['low']:.2f}, {row['high']:.2f}]  target "
                f"{target}"
            )
    sampler = sampler_times()
    print("sampler, N = 1e6:", sampler)
    body = {"unit": "one forward+backward of the same batch, process time", "rows": rows, "sampler": sampler}
    file = Path(__file__).parents[1] / "results" / "bench.json"
    file.write_text(json.dumps({**body, "provenance": collect(0.0)}, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
