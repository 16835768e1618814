from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

with install_import_hook("instability", "beartype.beartype"):
    import instability

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden():
    return np.load(Path(__file__).parent / "golden" / "instability.npz")


__all__ = ["instability"]
