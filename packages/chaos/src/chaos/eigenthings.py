"""Stored eigenpairs of Hessians and tangent matrices: one ``.npz`` file, safe to read from anywhere."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from chaos.exponents import snap_neutral
from gdyn_common.storage import read_array, read_arrays, reading, write_arrays

FORMAT_VERSION = 1
KINDS = ("hessian", "lyapunov")


@dataclass(frozen=True)
class Eigenthings:
    """Eigenpairs with what is needed to interpret them.

    Attributes:
        log_values: For ``lyapunov``: ``log eig(Y'Y)`` over the whole run (not per step). For ``hessian``
            ``log|w|``.
        values: For ``lyapunov``: growth factors ``eig(Y'Y)``. For ``hessian``: w.
        vectors: (n, r), columns; right singular vectors of Y, directions at time 0.
        num_zero: Multiplicity of the null space of a Hessian.
        step, learning_rate, momentum, seed: The run they come from; NaN or -1 where unknown.
        kind: ``"hessian"`` or ``"lyapunov"``.
    """

    values: Tensor
    log_values: Tensor
    vectors: Tensor
    num_zero: int
    step: int
    learning_rate: float
    momentum: float
    seed: int
    kind: str

    def __repr__(self) -> str:
        run = f"step {self.step}, seed {self.seed}" if self.step >= 0 else "an unknown step"
        return f"{len(self.values)} stored {self.kind} pairs of {self.n} parameters, from {run}"

    @property
    def exponents(self) -> Float[Tensor, " r"]:
        """Finite-time exponents per step, ``log eig(Y'Y) / 2T``."""
        return self.log_values / (2 * max(self.step, 1))

    @property
    def n(self) -> int:
        """Number of parameters of the model they belong to."""
        return int(self.vectors.shape[0])

    def save(self, path: str | Path) -> Path:
        """Write atomically as ``.npz`` with the keys of the attributes.

        Raises:
            ValueError: If the path has another suffix.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"{path} does not end in .npz, by which load_eigenthings knows its own files.")
        write_arrays(
            path,
            {
                "values": _array(self.values),
                "log_values": _array(self.log_values),
                "vectors": _array(self.vectors),
                "num_zero": self.num_zero,
                "step": self.step,
                "learning_rate": self.learning_rate,
                "momentum": self.momentum,
                "seed": self.seed,
                "kind": self.kind,
                "format_version": FORMAT_VERSION,
            },
        )
        return path


def _array(tensor: Tensor) -> np.ndarray:
    wide = torch.promote_types(tensor.dtype, torch.float32)  # NumPy has no bfloat16
    array: np.ndarray = tensor.detach().cpu().to(wide).numpy()
    return array


def load_eigenthings(path: str | Path) -> Eigenthings:
    """Read a stored file; nothing in it is ever executed.

    Also takes a pair (w, V) that ``torch.save`` wrote, as the original code does. Such a file does not say
    its step: w is the T-th root of eig(Y'Y) when it was saved at an epoch, eig(Y'Y) itself when saved at
    the end; the signs of the exponents agree.

    Raises:
        FileNotFoundError: If there is no such file; the message says how to make one.
        ValueError: If it is corrupt, of another format, or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"No stored eigenpairs at {str(path)!r}. Make them with a first run of the same seed, "
            "`train save_eigenthings=True seed=42`, and pass the file it names."
        )
    things = _read_npz(path) if path.suffix == ".npz" else _read_torch(path)
    return _checked(things, str(path))


def _read_npz(path: Path) -> Eigenthings:
    data = read_arrays(path)
    with reading(path):
        version, kind = int(data["format_version"]), str(data["kind"])
        things = Eigenthings(
            values=torch.from_numpy(data["values"]).double(),
            log_values=torch.from_numpy(data["log_values"]).double(),
            vectors=torch.from_numpy(data["vectors"]),
            num_zero=int(data["num_zero"]),
            step=int(data["step"]),
            learning_rate=float(data["learning_rate"]),
            momentum=float(data["momentum"]),
            seed=int(data["seed"]),
            kind=kind,
        )
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has format {version}; this version reads {FORMAT_VERSION}.")
    if kind not in KINDS:
        raise ValueError(f"{path} holds pairs of kind {kind!r}; allowed are {', '.join(KINDS)}.")
    return things


def _read_torch(path: Path) -> Eigenthings:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol; the reader refuses what it must
            pair = torch.load(path, map_location="cpu", weights_only=True)
        values, vectors = (torch.as_tensor(item) for item in pair)
    except Exception as error:  # an invalid pickle raises anything, IndexError included
        raise ValueError(
            f"{path} is not a pair (w, V) of tensors; nothing in it was executed. Pass an .npz of this "
            "package, or a torch file that holds tensors only."
        ) from error
    return _unlabelled(values, vectors)


def load_values_and_vectors(values: str | Path, vectors: str | Path) -> Eigenthings:
    """Read eigenvalues of Y'Y and eigenvectors from two ``.npy`` files.

    Raises:
        FileNotFoundError: If one is absent.
        ValueError: If they are no arrays of numbers or do not fit together; nothing in them is executed.
    """
    arrays = []
    for path in map(Path, (values, vectors)):
        numbers = read_array(path)
        with reading(path):
            arrays.append(torch.from_numpy(numbers))
    return _checked(_unlabelled(*arrays), f"{values} with {vectors}")


def _unlabelled(values: Tensor, vectors: Tensor) -> Eigenthings:
    """Eigenpairs of Y'Y from a source that does not say its step; neutral ones by the common rule."""
    if values.is_complex() or vectors.is_complex():
        raise ValueError(
            "The eigenpairs are complex; those of a symmetric matrix are real, pass their real part."
        )
    logs = values.clamp_min(0).log()
    largest = float(values.max()) if values.numel() else 1.0
    return Eigenthings(
        values=values.double(),
        log_values=snap_neutral(logs, 1, largest).double(),
        vectors=vectors,
        num_zero=0,
        step=-1,
        learning_rate=float("nan"),
        momentum=float("nan"),
        seed=-1,
        kind="lyapunov",
    )


def _checked(things: Eigenthings, source: str) -> Eigenthings:
    if things.vectors.ndim != 2 or things.vectors.shape[1] != len(things.log_values):
        raise ValueError(
            f"{source} holds {len(things.log_values)} values and vectors {tuple(things.vectors.shape)}; "
            "eigenvectors must be columns, one per value."
        )
    if not (torch.isfinite(things.vectors).all() and bool((things.log_values < torch.inf).all())):
        raise ValueError(
            f"{source} holds non-finite eigenvectors, or values that are NaN or infinite; make it anew."
        )
    return things
