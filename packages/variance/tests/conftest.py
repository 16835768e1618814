"""Networks, data and golden arrays shared by the tests."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from variance.data import TensorPopulation
from variance.losses import cross_entropy
from variance.objective import Objective, Point
from variance.per_example import quantities
from variance.stream import DataStream

torch.set_num_threads(1)


class Golden:
    """One problem of the golden file: `golden["loss"]` is an array, `golden.model()` its network."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        with np.load(Path(__file__).parent / "golden" / "variance.npz") as file:
            self.arrays = {key.split("/", 1)[1]: file[key] for key in file if key.startswith(problem + "/")}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {
            k.removeprefix(prefix + "/"): torch.from_numpy(v)
            for k, v in self.arrays.items()
            if k.startswith(prefix + "/")
        }

    def model(self) -> nn.Module:
        net = GoldenMLP() if self.problem == "mlp" else GoldenCNN()
        net.double().load_state_dict(self.group("param"))
        return net

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return self.tensor("X"), self.tensor("y")


class GoldenMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.fc2(self.fc1(x).relu()).relu())


class GoldenCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 3, stride=2)
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(self.conv1(x).relu()).relu().flatten(1))


@pytest.fixture(params=["mlp", "cnn"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture
def golden_mlp() -> Golden:
    return Golden("mlp")


class Problem:
    """A small classification problem with an objective, its live point and a stream."""

    def __init__(
        self, model: nn.Module | None = None, n: int = 48, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> None:
        torch.manual_seed(seed)
        self.model = (model or nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))).to(dtype)
        self.x, self.y = torch.randn(n, 5, dtype=dtype), torch.randint(3, (n,))
        self.population = TensorPopulation(self.x, self.y)
        self.objective = Objective(self.model, cross_entropy)
        self.point = Point.of(self.model)

    def gradients(self, point: Point | None = None) -> Tensor:
        batch = self.population.fetch(torch.arange(len(self.population)))
        found = quantities.materialised(self.objective.capture(point or self.point, batch))
        return torch.cat([value.flatten(1) for value in found.values()], 1)

    def stream(self, batch_size: int = 6, seed: int = 0, **options: object) -> DataStream:
        return DataStream(self.population, batch_size, seed=seed, **options)  # type: ignore[arg-type]


@pytest.fixture
def problem() -> Problem:
    return Problem()


@pytest.fixture
def make_problem() -> type[Problem]:
    return Problem
