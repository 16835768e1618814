"""Speed of exact curvature against torch.func, measured in one process and interleaved.

``python benchmarks/bench_o2grad.py [--full]`` writes ``results/bench.json``: CPU seconds on one thread,
medians and spreads, and the ratios that the package promises. The reference uses no structure:
``torch.func.hessian`` of the flat parameter vector, and ``torch.linalg.eigh`` of all of it. Without
``--full`` the slow references run once or twice.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
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
    "generic_peak_over_budget": ("<=", 1.0),
    "torch_over_cnn_hessian": (">=", 40.0),
    "torch_over_deep_mlp_hessian": (">=", 1.0),
    "generic_over_torch": ("<=", 1.1),
    "dense_over_structured_tangent": (">=", 5.0),
    "mlp_dense_batch64_over_batch8": ("<=", 4.0),
}


#: Why a target may be missed, as profiled.
REASONS = {
    "generic_over_torch": (
        "the same transforms in chunks of 1024 columns, so that memory stays bounded; each chunk is copied "
        "into the result once more"
    ),
}


def _met(value: float, target: tuple[str, float]) -> bool:
    sign, bound = target
    return value <= bound if sign == "<=" else value >= bound


def cpu_name() -> str:
    """The processor's name, where the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def cpu(function: Callable[[], object]) -> float:
    """CPU seconds of a call, in a row of calls of 0.1 s or more, as a training loop makes them."""
    calls, started = 0, time.process_time()
    while (spent := time.process_time() - started) < 0.1:
        function()
        calls += 1
    return spent / calls


def interleaved(cases: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each case; every round runs all of them once, the first round is warm-up."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for round_number in range(repeats + 1):
        for name, case in cases.items():
            seconds = cpu(case)
            if round_number:
                times[name].append(seconds)
    return times


def torch_hessian(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The reference: no structure, everything at once."""
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)
    sizes = [shape.numel() for shape in shapes]

    def loss(flat: Tensor) -> Tensor:
        pieces = zip(names, flat.split(sizes), shapes, strict=True)
        tensors = {name: piece.view(shape) for name, piece, shape in pieces}
        return nn.functional.cross_entropy(torch.func.functional_call(model, tensors, (x,)), y)

    return torch.func.hessian(loss)(nn.utils.parameters_to_vector(model.parameters()).detach())


def generic_peak(budget: int) -> float:
    """Growth of peak memory while the generic backend computes a Hessian under a budget, per budget.

    Linux only. Runs in a fresh process, so that nothing before it has raised the peak; the matrix itself
    and what the transforms take for one column are subtracted.
    """
    code = (
        "import re, sys, torch\n"
        "from torch import nn\n"
        "from chaos.models import mlp\n"
        "from chaos.o2grad import LossSurface\n"
        "torch.set_num_threads(1)\n"
        "x, y = torch.randn(8, 1, 16, 16), torch.randint(10, (8,))\n"
        "s = LossSurface(mlp(), nn.CrossEntropyLoss(), backend='generic', memory_budget=int(sys.argv[1]))\n"
        "s.hvp(None, x, y, torch.ones(s.n, 1))\n"
        "H = torch.ones(s.n, s.n)\n"
        "status = lambda: open('/proc/self/status').read()\n"  # ru_maxrss is inherited from the parent
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status())[1]) * 1024\n"
        "before = peak()\n"
        "del H\n"
        "s.hessian(None, x, y)\n"
        "print(max(peak() - before, 0))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(budget)], capture_output=True, text=True, check=True
    )
    return int(out.stdout) / budget


def main(full: bool = False) -> None:
    """Measure everything and write the record."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loss = nn.CrossEntropyLoss()
    x, y = torch.randn(8, 1, 16, 16), torch.randint(10, (8,))
    x64, y64 = torch.randn(64, 1, 16, 16), torch.randint(10, (64,))
    network, convolutional = mlp(), cnn()
    fast, double = LossSurface(network, loss), LossSurface(network, loss, dtype=torch.float64)
    generic = LossSurface(network, loss, backend="generic")
    conv = LossSurface(convolutional, loss)
    tanh = [layer for _ in range(6) for layer in (nn.Linear(24, 24), nn.Tanh())]
    deep_network = nn.Sequential(*tanh, nn.Linear(24, 10))
    deep = LossSurface(deep_network, loss)
    x32, y32 = torch.randn(32, 24), torch.randint(10, (32,))
    times = interleaved(
        {
            "mlp_eigenpairs_float32": lambda: fast.hessian(None, x, y).eigh(),
            "mlp_eigenpairs_float64": lambda: double.hessian(None, x, y).eigh(),
            "mlp_dense": lambda: fast.hessian(None, x, y).dense(),
            "mlp_dense_batch64": lambda: fast.hessian(None, x64, y64).dense(),
            "cnn_hessian": lambda: conv.hessian(None, x, y).dense(),
            "mlp_torch_hessian": lambda: torch_hessian(network, x, y),
            "mlp_generic": lambda: generic.hessian(None, x, y).dense(),
            "cnn_torch_hessian": lambda: torch_hessian(convolutional, x, y),
        },
        15 if full else 7,
    )
    H = fast.hessian(None, x, y)
    dense = H.dense()
    times["mlp_torch_eigh"] = [cpu(lambda: torch.linalg.eigh(dense)) for _ in range(3 if full else 1)]
    structured, plain = (LyapunovTracker(H.n, 1e-3, dtype=torch.float32) for _ in range(2))
    times |= interleaved(
        {
            "tangent_structured": lambda: structured.update(H),
            "tangent_dense": lambda: plain.update(dense),
        },
        5 if full else 2,
    )
    times |= interleaved(
        {
            "deep_mlp_hessian": lambda: deep.hessian(None, x32, y32).dense(),
            "deep_mlp_torch_hessian": lambda: torch_hessian(deep_network, x32, y32),
        },
        15 if full else 7,
    )
    median = {name: statistics.median(values) for name, values in times.items()}
    reference = median["mlp_torch_hessian"] + median["mlp_torch_eigh"]
    ratios = {
        "mlp_dense_over_torch": median["mlp_dense"] / median["mlp_torch_hessian"],
        "torch_hessian_eigh_over_mlp_eigenpairs": reference / median["mlp_eigenpairs_float32"],
        "mlp_eigenpairs_float64_ms": 1e3 * median["mlp_eigenpairs_float64"],
        "torch_over_cnn_hessian": median["cnn_torch_hessian"] / median["cnn_hessian"],
        "torch_over_deep_mlp_hessian": median["deep_mlp_torch_hessian"] / median["deep_mlp_hessian"],
        "generic_over_torch": median["mlp_generic"] / median["mlp_torch_hessian"],
        "dense_over_structured_tangent": median["tangent_dense"] / median["tangent_structured"],
        "generic_peak_over_budget": generic_peak(256 << 20),
        "mlp_dense_batch64_over_batch8": median["mlp_dense_batch64"] / median["mlp_dense"],
    }
    body = {
        "targets": [
            {
                "name": name,
                "measured": round(ratios[name], 4),
                "target": f"{sign} {bound:g}",
                "met": _met(ratios[name], (sign, bound)),
            }
            for name, (sign, bound) in TARGETS.items()
        ],
        "missed_because": {
            name: reason for name, reason in REASONS.items() if not _met(ratios[name], TARGETS[name])
        },
        "cpu_seconds": {
            name: {"median": median[name], "min": min(values), "max": max(values), "repeats": len(values)}
            for name, values in times.items()
        },
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": 1,
            "cpu": cpu_name(),
            "mode": "full" if full else "short",
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        },
    }
    path = Path(__file__).parents[1] / "results" / "bench.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    for row in body["targets"]:
        verdict = "met" if row["met"] else "MISSED"
        print(f"{row['name']:<42}{row['measured']:>10.4g}  {row['target']:<8} {verdict}")


if __name__ == "__main__":
    main("--full" in sys.argv[1:])
