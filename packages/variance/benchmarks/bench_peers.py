"""The same quantities from BackPACK, Opacus and torch.func, in units of one forward+backward pass.

Peers that are not installed are left out with a word. They pull in torchvision, hence an environment of their
own: `BENCH_PEERS=1 nox -s bench-variance`, or `pip install 'gdyn-variance[bench]'`.
"""

import argparse
import copy
import warnings
from collections.abc import Callable

import torch
from bench_per_example import BATCH, problems
from sections import interleaved, ratios, write_section
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from variance import per_example
from variance.losses import cross_entropy

SLOW = {"mlp"}
"""Materialising 128 x 1.9 million numbers; timed once."""


def ours(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    return {
        "ours: squared norms": lambda: per_example.squared_norms(model, cross_entropy, x, y),
        "ours: total variance": lambda: per_example.trace_of_covariance(model, cross_entropy, x, y),
        "ours: second moments": lambda: per_example.second_moments(model, cross_entropy, x, y),
    }


def torch_func(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(values: dict[str, Tensor], example: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, values, (example[None],)), target[None]).sum()

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))
    return {
        "torch.func vmap(grad): second moments": lambda: [
            value.square().sum(0) for value in gradients(parameters, x, y).values()
        ]
    }


def backpack(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    from backpack import backpack as context
    from backpack import extend, extensions

    extended, criterion = extend(copy.deepcopy(model)), extend(nn.CrossEntropyLoss(reduction="sum"))

    def job(extension: object) -> Callable[[], object]:
        def run() -> None:
            extended.zero_grad(set_to_none=True)
            with context(extension):
                criterion(extended(x), y).backward()

        return run

    return {
        "BackPACK BatchL2: squared norms": job(extensions.BatchL2Grad()),
        "BackPACK Variance: variance by coordinate": job(extensions.Variance()),
        "BackPACK SumGradSquared: second moments": job(extensions.SumGradSquared()),
    }


def opacus(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    from opacus import GradSampleModule

    sampled = GradSampleModule(copy.deepcopy(model))

    def run() -> None:
        sampled.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(sampled(x), y, reduction="sum").backward()
        for parameter in sampled.parameters():
            parameter.grad_sample.square().sum(0)  # type: ignore[attr-defined]

    return {"Opacus GradSampleModule: second moments": run}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = {}
    for name, (model, x) in problems().items():
        y = torch.randint(10, (BATCH,))

        def forward_backward(model: nn.Module = model, x: Tensor = x, y: Tensor = y) -> None:
            cross_entropy(model(x), y).mean().backward()
            model.zero_grad(set_to_none=True)

        jobs: dict[str, Callable[[], object]] = {"unit": forward_backward}
        for peer in (ours, torch_func, backpack, opacus):
            if peer is backpack and name == "resnet8":
                print("BackPACK: no residual connections written as functions, left out for resnet8")
                continue
            try:
                jobs |= peer(model, x, y)
            except ImportError as error:
                print(f"{peer.__name__}: not installed ({error})")
        times = interleaved(jobs, 1 if name in SLOW else arguments.repeats)
        rows[name] = ratios(times, "unit")
        for task, found in rows[name].items():
            print(f"{name:<9}{task:<44}{found['ratio']:8.2f}  [{found['low']:.2f}, {found['high']:.2f}]")
    write_section("peers", {"unit": "one forward+backward of the same batch, process time", "ratios": rows})


if __name__ == "__main__":
    main()
