from pathlib import Path

import jax
import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden" / "eigengame.npz"


@pytest.fixture(scope="session")
def golden():
    with np.load(GOLDEN) as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def data(rng):
    """Rows whose four largest variances are far apart."""
    return (rng.standard_normal((1000, 8)) * [8, 6, 4.5, 3, 1, 1, 1, 1] + 10).astype(np.float32)
