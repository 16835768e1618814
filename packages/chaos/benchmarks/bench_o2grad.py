"""Speed of exact curvature against torch.func, measured in one process and interleaved.

``python benchmarks/bench_o2grad.py [repeats]`` writes ``results/bench.json``: CPU seconds on one thread,
medians and spreads, and the ratios that the package promises. The reference uses no structure:
``torch.func.hessian`` of the flat parameter vector, and ``torch.linalg.eigh`` of all of it.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from chaos.lyapunov import LyapunovTracker
from chaos.models import cnn, mlp
from chaos.o2grad import LossSurface

TARGETS = {
    "mlp_dense_over_torch": ("<=", 0.45),
    "torch_hessian_eigh_over_mlp_eigenpairs": (">=", 500.0),
    "mlp_eigenpairs_float64_ms": ("<=", 30.0),
    "torch_over_cnn_hessian": (">=", 40.0),
    "generic_over_torch": ("<=", 1.1),
    "dense_over_structured_tangent": (">=", 5.0),
    "mlp_dense_batch64_over_batch8": ("<=", 4.0),
}


def cpu(function: Callable[[], object]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


def interleaved(cases: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each case; every round runs all of them once, the first round is warm-up."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for round_number in range(repeats + 1):
        for name, case in cases.items():
            seconds = cpu(case)
            if round_number:
                times[name].append(seconds)
    return times


def torch_hessian(surface: LossSurface, x: Tensor, y: Tensor) -> Tensor:
    """The reference: no structure, everything at once."""
    function = surface._function(x, y)
    return torch.func.hessian(function)(surface._point(None))


def main(repeats: int = 5) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loss = nn.CrossEntropyLoss()
    x, y = torch.randn(8, 1, 16, 16), torch.randint(10, (8,))
    x64, y64 = torch.randn(64, 1, 16, 16), torch.randint(10, (64,))
    network, convolutional = mlp(), cnn()
    fast, double = LossSurface(network, loss), LossSurface(network, loss, dtype=torch.float64)
    generic = LossSurface(network, loss, backend="generic")
    conv = LossSurface(convolutional, loss)
    times = interleaved(
        {
            "mlp_eigenpairs_float32": lambda: fast.hessian(None, x, y).eigh(),
            "mlp_eigenpairs_float64": lambda: double.hessian(None, x, y).eigh(),
            "mlp_dense": lambda: fast.hessian(None, x, y).dense(),
            "mlp_dense_batch64": lambda: fast.hessian(None, x64, y64).dense(),
            "cnn_hessian": lambda: conv.hessian(None, x, y).dense(),
        },
        4 * repeats,
    )
    times |= interleaved(
        {
            "mlp_torch_hessian": lambda: torch_hessian(fast, x, y),
            "mlp_generic": lambda: generic.hessian(None, x, y).dense(),
            "cnn_torch_hessian": lambda: torch_hessian(conv, x, y),
        },
        repeats,
    )
    H = fast.hessian(None, x, y)
    dense = H.dense()
    times["mlp_torch_eigh"] = [cpu(lambda: torch.linalg.eigh(dense))]
    structured, plain = (LyapunovTracker(H.n, 1e-3, dtype=torch.float32) for _ in range(2))
    times |= interleaved(
        {
            "tangent_structured": lambda: structured.update(H),
            "tangent_dense": lambda: plain.update(dense),
        },
        2,
    )
    median = {name: statistics.median(values) for name, values in times.items()}
    reference = median["mlp_torch_hessian"] + median["mlp_torch_eigh"]
    ratios = {
        "mlp_dense_over_torch": median["mlp_dense"] / median["mlp_torch_hessian"],
        "torch_hessian_eigh_over_mlp_eigenpairs": reference / median["mlp_eigenpairs_float32"],
        "mlp_eigenpairs_float64_ms": 1e3 * median["mlp_eigenpairs_float64"],
        "torch_over_cnn_hessian": median["cnn_torch_hessian"] / median["cnn_hessian"],
        "generic_over_torch": median["mlp_generic"] / median["mlp_torch_hessian"],
        "dense_over_structured_tangent": median["tangent_dense"] / median["tangent_structured"],
        "mlp_dense_batch64_over_batch8": median["mlp_dense_batch64"] / median["mlp_dense"],
    }
    body = {
        "targets": [
            {
                "name": name,
                "measured": round(ratios[name], 4),
                "target": f"{sign} {bound:g}",
                "met": ratios[name] <= bound if sign == "<=" else ratios[name] >= bound,
            }
            for name, (sign, bound) in TARGETS.items()
        ],
        "cpu_seconds": {
            name: {"median": median[name], "min": min(values), "max": max(values), "repeats": len(values)}
            for name, values in times.items()
        },
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": 1,
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        },
    }
    path = Path(__file__).parents[1] / "results" / "bench.json"
    path.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    for row in body["targets"]:
        verdict = "met" if row["met"] else "MISSED"
        print(f"{row['name']:<42}{row['measured']:>10.4g}  {row['target']:<8} {verdict}")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
