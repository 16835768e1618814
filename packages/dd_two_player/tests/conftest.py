"""Fixtures: double precision where a test asks for it, the golden arrays and the small GAN they belong to."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden" / "dd_two_player.npz"


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def golden():
    with np.load(GOLDEN) as data:
        return {name: data[name] for name in data.files}


class GoldenGan:
    """The GAN of the golden arrays, written out independently of the package's networks."""

    RTOL, ATOL = 1e-9, 1e-11  # of golden/dd_two_player.md, float64

    def __init__(self, golden):
        self.golden = golden

    def tree(self, prefix):
        """Collect ``w<i>, b<i>`` below a prefix."""
        cut = len(prefix) + 1
        found = {
            k[cut:]: v for k, v in self.golden.items() if k.startswith(prefix + "/") and "/" not in k[cut:]
        }
        return {k: jnp.asarray(v) for k, v in found.items()}

    def params(self):
        return self.tree("params/disc"), self.tree("params/gen")

    def batch(self):
        return {"x": jnp.asarray(self.golden["data/x"]), "z": jnp.asarray(self.golden["data/z"])}

    @staticmethod
    def mlp(weights, x):
        layers = len(weights) // 2
        for i in range(layers):
            x = x @ weights[f"w{i}"] + weights[f"b{i}"]
            if i < layers - 1:
                x = jnp.tanh(x)
        return x

    def losses(self, kind):
        mlp, softplus = self.mlp, jax.nn.softplus

        def disc(d, g, batch):
            real, fake = mlp(d, batch["x"]), mlp(d, mlp(g, batch["z"]))
            if kind == "square":
                return jnp.mean((real - 1) ** 2) + jnp.mean(fake**2)
            return jnp.mean(softplus(-real)) + jnp.mean(softplus(fake))

        def gen(d, g, batch):
            fake = mlp(d, mlp(g, batch["z"]))
            if kind == "square":
                return -jnp.mean(fake**2)
            return jnp.mean(softplus(-fake)) if kind == "nonsat" else -jnp.mean(softplus(fake))

        return disc, gen

    def assert_tree(self, measured, prefix):
        expected = self.tree(prefix)
        assert set(measured) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(
                measured[name], value, self.RTOL, self.ATOL, err_msg=f"{prefix}/{name}"
            )


@pytest.fixture
def small(golden, x64):
    return GoldenGan(golden)
