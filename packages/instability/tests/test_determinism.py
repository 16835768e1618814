import pytest
import torch

from instability.determinism import bit_reproducible, numerical_settings


def test_settings_name_what_changes_rounding():
    settings = numerical_settings(torch.float64)
    assert settings["dtype"] == "float64"
    assert {"threads", "torch", "cpu_capability", "tf32", "autocast"} <= set(settings)


def test_context_restores_the_flags():
    before = torch.are_deterministic_algorithms_enabled()
    with bit_reproducible():
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
    assert torch.are_deterministic_algorithms_enabled() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_missing_gpu_is_said():
    with pytest.raises(ValueError, match=r"torch sees no GPU\. Use device=cpu"), bit_reproducible("cuda"):
        pass
