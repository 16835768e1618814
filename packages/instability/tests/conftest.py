from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

# Shapes and types are checked while the tests run, in the modules that do not report bad input themselves.
# Not in `copies` and `pde.reduced_map`: a check of each of thousands of steps takes ten times the step.
CHECKED = ["pde.activations", "curvature", "exponents.separation"]
install_import_hook([f"instability.{name}" for name in CHECKED], "beartype.beartype")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden():
    return np.load(Path(__file__).parent / "golden" / "instability.npz")
