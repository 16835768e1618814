import os

import pytest
import torch

from instability.determinism import (
    _float32_parts,
    bit_reproducible,
    float32_precision,
    numerical_settings,
)


def test_settings_name_what_changes_rounding():
    settings = numerical_settings(torch.float64)
    assert settings["dtype"] == "float64"
    assert {"threads", "torch", "cpu_capability", "tf32", "autocast"} <= set(settings)


def test_context_restores_the_flags():
    before = torch.are_deterministic_algorithms_enabled()
    torch.backends.cudnn.benchmark = True
    try:
        with bit_reproducible():
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = False
    assert torch.are_deterministic_algorithms_enabled() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_missing_gpu_is_said():
    with pytest.raises(ValueError, match=r"torch sees no GPU\. Use device=cpu"), bit_reproducible("cuda"):
        pass


def states():
    """Ways in which a user may have switched TF32, and what is read of it afterwards."""
    backends = torch.backends
    ways = {
        "default": lambda: None,
        "medium": lambda: torch.set_float32_matmul_precision("medium"),
        "older": lambda: setattr(backends.cuda.matmul, "allow_tf32", True),
        "older, cuDNN": lambda: setattr(backends.cudnn, "allow_tf32", False),
    }
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        ways |= {
            "newer": lambda: setattr(backends.cuda.matmul, "fp32_precision", "tf32"),
            "newer, all": lambda: setattr(backends, "fp32_precision", "ieee"),
            "newer, CPU": lambda: setattr(backends.mkldnn.matmul, "fp32_precision", "bf16"),
            "newer, convolutions": lambda: setattr(backends.mkldnn.conv, "fp32_precision", "bf16"),
        }
    return ways


def reading():
    backends = torch.backends
    paths = [
        lambda: torch.get_float32_matmul_precision(),
        lambda: backends.cuda.matmul.allow_tf32,
        lambda: backends.cudnn.allow_tf32,
        *(lambda part=part: part.fp32_precision for part in _float32_parts()),
    ]
    found = []
    for path in paths:
        try:
            found.append(path())
        except RuntimeError:
            found.append("refused")
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="torch cannot forget which interface was used")
@pytest.mark.parametrize("way", states())
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_precision_of_products_is_put_back_in_both_interfaces(way, precision):
    child = os.fork()
    if child == 0:
        states()[way]()
        before = reading()
        with float32_precision(precision):
            right = numerical_settings(torch.float32)["tf32"] is (precision == "tf32")
        os._exit(0 if right and reading() == before else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
