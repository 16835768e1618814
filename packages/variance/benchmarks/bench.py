"""Per-example quantities, clustering and K-FAC against a training pass, vmap, BackPACK and Opacus.

The limit of a case is one forward and backward pass of the same batch: the work that training does anyway.
The peers are the extra `bench`.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from gdyn_reproduce.benchmark import Case, Contender, main, optional
from variance import ExampleMeter, NoiseMeter, measure_model, per_example
from variance.data import TensorPopulation
from variance.estimators import EKFAC, KFAC, SGB, GradientEstimator
from variance.gradient_clustering import cluster
from variance.losses import cross_entropy
from variance.objective import Objective, Point
from variance.paper.models import ResNet, mlp, small_cnn
from variance.paper.optimizer import Optimizer

Job = Callable[[], object]
Meter = NoiseMeter | ExampleMeter
Problem = tuple[nn.Module, Tensor, Tensor]


def problem(name: str, width: int = 256, batch: int = 64) -> Problem:
    torch.manual_seed(0)
    model, shape = {
        "mlp": lambda: (mlp(width, width, width, 10), (width,)),
        "mnist-mlp": lambda: (mlp(784, 1024, 1024, 10), (784,)),
        "cnn": lambda: (small_cnn(), (1, 28, 28)),
        "resnet8": lambda: (ResNet(8).eval(), (3, 32, 32)),
    }[name]()
    return model, torch.randn(batch, *shape), torch.randint(10, (batch,))


def one_pass(model: nn.Module, x: Tensor, y: Tensor) -> Job:
    parameters = list(model.parameters())
    return lambda: torch.autograd.grad(cross_entropy(model(x), y).mean(), parameters)


def by_vmap(model: nn.Module, x: Tensor, y: Tensor, reduce: Callable[[Tensor], Tensor]) -> Job:
    values = {name: value.detach() for name, value in model.named_parameters()}

    def loss(values: dict[str, Tensor], example: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, values, (example[None],)), target[None]).sum()

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))
    return lambda: [reduce(value) for value in gradients(values, x, y).values()]


def by_backpack(model: nn.Module, x: Tensor, y: Tensor, extension: str) -> Job:
    from backpack import backpack, extend, extensions

    extended, criterion = extend(copy.deepcopy(model)), extend(nn.CrossEntropyLoss(reduction="sum"))

    def run() -> None:
        extended.zero_grad(set_to_none=True)
        with backpack(getattr(extensions, extension)()):
            criterion(extended(x), y).backward()

    return run


def by_opacus(model: nn.Module, x: Tensor, y: Tensor) -> Job:
    from opacus import GradSampleModule

    sampled = GradSampleModule(copy.deepcopy(model))

    def run() -> None:
        sampled.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(sampled(x), y, reduction="sum").backward()

    return run


def quantity(name: str, make: Callable[[], Problem], extension: str = "") -> dict[str, Contender]:
    model, x, y = make()
    reduce: dict[str, Callable[[Tensor], Tensor]] = {
        "gradients": lambda g: g,
        "second_moments": lambda g: g.square().mean(0),
        "squared_norms": lambda g: g.flatten(1).square().sum(1),
    }
    ours = partial(getattr(per_example, name), model, cross_entropy, x, y)
    for _ in range(9):  # its checks of itself, at calls 1, 2, 4, 8, ..., become rare
        ours()
    jobs: dict[str, Contender] = {
        "ours": ours,
        "limit": one_pass(model, x, y),
    }
    if name in reduce:
        jobs["vmap"] = by_vmap(model, x, y, reduce[name])
    if extension:
        jobs["BackPACK"] = optional(lambda: by_backpack(model, x, y, extension))
    if name == "gradients":
        jobs["Opacus"] = optional(lambda: by_opacus(model, x, y))
    return jobs


def clustering_pass(width: int, count: int) -> dict[str, Contender]:
    torch.manual_seed(0)
    model, x, y = mlp(64, width, 10), torch.randn(2048, 64), torch.randint(10, (2048,))
    steps = [one_pass(model, *pair) for pair in zip(x.split(128), y.split(128), strict=True)]
    return {
        "ours": partial(cluster, model, cross_entropy, x, y, count, iterations=1),
        "limit": lambda: [step() for step in steps],
    }


def natural_step(make: Callable[[Objective], GradientEstimator]) -> dict[str, Contender]:
    """Twenty steps with two updates of the factors and, in five times as many, one of the bases."""
    model, x, y = mlp(784, 256, 256, 10), torch.randn(128, 784), torch.randint(10, (128,))
    objective, point = Objective(model, cross_entropy), Point.of(model)
    optimizer = Optimizer(point, torch.optim.SGD(model.parameters(), lr=1e-6))
    population = TensorPopulation(x, y)
    batch = population.fetch(torch.arange(128))
    estimator, plain, count = make(objective), SGB(objective), [0]

    def natural() -> None:
        for _ in range(20):
            if count[0] % 10 == 0:
                estimator.on_frequent(count[0], point, batch)
            if count[0] % 100 == 0:
                estimator.on_infrequent(count[0], point, population)
            optimizer.apply(estimator.direction(point, batch).values)
            count[0] += 1

    def sgd() -> None:
        for _ in range(20):
            optimizer.apply(plain.direction(point, batch).values)

    return {"ours": natural, "limit": sgd}


def measured() -> dict[str, Contender]:
    model, x, y = problem("mnist-mlp", batch=2000)
    step = one_pass(model, x[:128], y[:128])
    return {
        "ours": lambda: measure_model(model, cross_entropy, x, y, batch_size=128, num_draws=5),
        "limit": lambda: [step() for _ in range(5)],
    }


def metered(
    name: str, batch: int, make: Callable[[nn.Module], NoiseMeter | ExampleMeter]
) -> dict[str, Contender]:
    """Steps of SGD, in four micro-batches for a NoiseMeter, against the same steps that nobody measures."""
    model, x, y = problem(name, batch=batch)
    watched = copy.deepcopy(model)
    meter = make(watched)
    parts = 4 if isinstance(meter, NoiseMeter) else 1

    def loop(model: nn.Module, meter: Meter | None, count: int = 8) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
        for _ in range(count):
            optimizer.zero_grad()
            for own, labels in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (cross_entropy(model(own), labels).mean() / parts).backward()
            if meter is not None:
                meter.step()
            optimizer.step()

    loop(watched, meter, 32 if parts == 1 else 4)  # its checks of itself become rare
    return {"ours": lambda: loop(watched, meter), "limit": lambda: loop(model, None)}


def grown(curve: str, sizes: tuple[int, ...], make: Callable[[int], Problem]) -> list[Case]:
    return [
        Case(
            f"growth-{curve}-{size}", f"per-example gradients, {curve} {size}",
            partial(quantity, "gradients", partial(make, size), "BatchGrad"),
            growth=f"per-example gradients over {curve}", size=size,
        )
        for size in sizes
    ]  # fmt: skip


def by_width(width: int) -> Problem:
    return problem("mlp", width)


def by_batch(batch: int) -> Problem:
    return problem("mlp", batch=batch)


WIDE: dict[str, Any] = {"mlp": "two hidden layers of 256, 64 examples", "resnet8": "ResNet-8, 32 examples"}
CASES = [
    Case(
        "gradients-mlp", f"per-example gradients, {WIDE['mlp']}",
        partial(quantity, "gradients", partial(problem, "mlp"), "BatchGrad"),
        note="writing 34 MB is what it takes; ours is one matrix, which the default allocator gives back "
        "after each call, while the peers' is in pieces that it keeps",
    ),
    Case(
        "moments-mlp", f"second moments, {WIDE['mlp']}",
        partial(quantity, "second_moments", partial(problem, "mlp"), "SumGradSquared"),
        note="a product of squared factors for each layer, weighted and summed, comes on top of the pass",
    ),
    Case(
        "moments-resnet", f"second moments, {WIDE['resnet8']}",
        partial(quantity, "second_moments", partial(problem, "resnet8", batch=32)),
    ),
    Case(
        "trace-mnist", "total variance, 784-1024-1024-10, 128 examples",
        partial(quantity, "trace_of_covariance", partial(problem, "mnist-mlp", batch=128)),
    ),
    Case(
        "clustering", "one pass of clustering into 32, 64-256-10, 2048 examples",
        partial(clustering_pass, 256, 32),
        note="inner products with 32 centres come on top of the pass",
    ),
    Case(
        "kfac", "20 steps of K-FAC, factors every 10, bases every 100", partial(natural_step, KFAC),
        note="a gradient is rotated into the eigenbases and back: six times the arithmetic of a step of SGD",
    ),
    Case("ekfac", "20 steps of EK-FAC, factors every 10, bases every 100", partial(natural_step, EKFAC)),
    Case(
        "measure", "measure_model, 5 batches of 128, 784-1024-1024-10", measured,
        note="variances by coordinate come on top of the pass",
    ),
    Case(
        "noise-meter", "8 steps of 4 micro-batches of 128, NoiseMeter, 784-1024-1024-10",
        partial(metered, "mnist-mlp", 512, partial(NoiseMeter, micro_batch_size=128, divided=True)),
    ),
    Case(
        "noise-meter-small", "8 steps of 4 micro-batches of 16, NoiseMeter(every=8), 784-1024-1024-10",
        partial(metered, "mnist-mlp", 64, partial(NoiseMeter, micro_batch_size=16, divided=True, every=8)),
    ),
    Case(
        "example-meter", f"8 steps, ExampleMeter, {WIDE['mlp']}", partial(metered, "mlp", 64, ExampleMeter),
        note="a few dozen small operations for each layer, which larger networks do not notice",
    ),
    Case(
        "example-meter-cnn", "8 steps, ExampleMeter, small CNN, 64 examples",
        partial(metered, "cnn", 64, ExampleMeter),
    ),
]  # fmt: skip

GROWTH = [*grown("width", (64, 256, 512), by_width), *grown("batch", (16, 64, 256), by_batch)]

if __name__ == "__main__":
    main("variance", CASES + GROWTH)
