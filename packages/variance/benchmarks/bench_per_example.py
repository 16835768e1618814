"""Cost of clustering and exact statistics, in units of one forward+backward pass of the same batch.

Prints and writes the section `per_example` of `results/bench.json`. Process time, one thread, medians over
interleaved repeats.
"""

import argparse
import time
from collections.abc import Callable

import torch
from sections import interleaved, ratios, write_section
from torch import nn

from variance.gradient_clustering.centres import ClusteringOptions, RunningSums, squared_distances
from variance.losses import cross_entropy
from variance.paper.models import ResNet, mlp, small_cnn
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
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, (model, x) in problems().items():
        y = torch.randint(10, (BATCH,))
        jobs = tasks(model, x, y)
        times = interleaved(jobs, arguments.repeats)
        for task, found in ratios(times, "forward_backward").items():
            target = TARGETS.get(task, {}).get(name)
            rows.append({"network": name, "task": task, **found, "target": target})
            bounds = f"[{found['low']:.2f}, {found['high']:.2f}]"
            print(f"{name:<10}{task:<20}{found['ratio']:6.2f}  {bounds}  target {target}")
    sampler = sampler_times()
    print("sampler, N = 1e6:", sampler)
    unit = "one forward+backward of the same batch, process time"
    write_section("per_example", {"unit": unit, "rows": rows, "sampler": sampler})


if __name__ == "__main__":
    main()
