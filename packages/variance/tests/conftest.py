"""Networks, data and golden arrays shared by the tests."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

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
