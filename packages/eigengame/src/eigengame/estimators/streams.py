"""From whatever the user has to batches of rows: arrays, memmaps, sparse rows, iterables.

Sparse rows are densified one batch at a time, and a memmap is read in contiguous blocks. Batches keep the
precision of the data until `frames.Frame` has subtracted a mean.
"""

from collections.abc import Callable, Iterable, Iterator
from numbers import Integral
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import validate_data

from eigengame.exact import refuse_rounded

__all__ = [
    "array_batches",
    "check_finite",
    "chunks",
    "dense_rows",
    "is_stream",
    "iterable_batches",
    "pad_rows",
    "real_numbers",
    "validated",
]

_TIMES = ("date", "time", "duration", "period")  # how their types are called by NumPy, pandas and polars


def is_stream(X: Any) -> bool:
    """Return whether X is a callable or an iterable of batches rather than an array-like of rows."""
    if isinstance(X, list | tuple):
        return bool(X) and len(getattr(X[0], "shape", ())) == 2
    array_like = any(hasattr(X, name) for name in ("shape", "__array__", "__getitem__"))
    return callable(X) or (isinstance(X, Iterable) and not array_like)


def real_numbers(X: Any, name: str = "X") -> Any:
    """Return X, refused where its type says that its entries are no real numbers.

    Floating-point types that NumPy does not know, such as bfloat16, are widened to single precision, and
    those beyond double precision are rounded to it; tensors of torch lose their gradients and device.

    Raises:
        ValueError: For an iterator or a function, and for masked, complex, structured or text entries,
            integers that double precision rounds, dates and durations, also in one column of a data frame.

    Example:
        >>> real_numbers(np.zeros(2, "datetime64[s]"))
        Traceback (most recent call last):
        ValueError: X holds datetime64[s]: pass numbers, for example seconds since a date of your choice.
    """
    if is_stream(X):
        raise ValueError(f"{name} is a {type(X).__name__}: pass an array, or its batches to partial_fit.")
    if np.ma.is_masked(X):
        raise ValueError(f"{name} has masked entries: drop their rows, or fill them with {name}.filled(...).")
    if hasattr(X, "detach"):
        X = X.detach().cpu()
        X = (X.float() if str(X.dtype) == "torch.bfloat16" else X).numpy()
    dtype: Any = getattr(X, "dtype", None)
    kind = getattr(dtype, "kind", "O")
    is_frame = hasattr(X, "columns") and hasattr(X, "dtypes")
    for index, held in enumerate(X.dtypes if is_frame else []):
        if str(held).lower() in ("int64", "uint64"):  # next to other columns they turn into doubles
            column = X.iloc[:, index].dropna() if hasattr(X, "iloc") else X[:, index].drop_nulls()
            refuse_rounded(np.asarray(column, str(held).lower()), f"Column {X.columns[index]!r} of {name}")
    for held in list(X.dtypes) if is_frame else [dtype]:
        if str(held).lower().startswith(_TIMES):  # polars would count microseconds
            raise ValueError(
                f"{name} holds {held}: pass numbers, for example seconds since a date of your choice."
            )
    if kind == "c":
        raise ValueError(f"Complex data not supported: {name} holds {dtype}; pass real numbers.")
    if kind in "SU" or (kind == "V" and not jnp.issubdtype(dtype, np.floating)):
        raise ValueError(f"{name} holds entries of type {dtype}; pass numbers.")
    if kind == "V":
        return np.asarray(X).astype(np.float32)
    # numbers as objects: columns of a data frame that share no type, such as categories
    if kind == "O" and isinstance(X, np.ndarray):
        for entry in X.flat:
            if isinstance(entry, Integral) and int(float(entry)) != entry:
                refuse_rounded(np.array(2**53 + 1), name)
            if isinstance(entry, np.datetime64 | np.timedelta64):
                raise ValueError(f"{name} holds dates: pass numbers, for example seconds since one of them.")
        return X.astype(np.float64)
    if kind in "iu" and not isinstance(X, np.memmap):  # a file is read, and looked at, in blocks
        refuse_rounded(X.tocoo().data if hasattr(X, "tocsr") else np.asarray(X), name)
    return X.astype(np.float64) if kind == "f" and dtype.itemsize > 8 else X


def validated(estimator: Any, X: Any, **options: Any) -> Any:
    """Return X as scikit-learn checks it for an estimator, dense or sparse, and holding real numbers.

    The type is looked at before scikit-learn turns X into an array and after it, when objects have one.

    Raises:
        ValueError: What `real_numbers` and scikit-learn's `validate_data` refuse.
    """
    return real_numbers(validate_data(estimator, real_numbers(X), dtype="numeric", **options))


def dense_rows(X: Any, rows: Any = None) -> NDArray:
    """Return the selected rows, or all, as a dense array of real numbers.

    Raises:
        ValueError: For complex entries, or entries that are no numbers.
    """
    part = X if rows is None else X[rows]  # not every sparse format can be indexed
    part = part.toarray() if hasattr(part, "toarray") else real_numbers(part)
    dense: NDArray = real_numbers(np.asarray(part))
    return dense


def pad_rows(rows: NDArray, size: int) -> NDArray:
    """Return rows with zero rows appended up to `size`."""
    missing = size - rows.shape[0]
    return rows if missing == 0 else np.pad(rows, ((0, missing), (0, 0)))


def check_finite(rows: NDArray, index: int) -> None:
    """Raise ValueError naming the batch if any entry is NaN or infinite."""
    if not np.all(np.isfinite(rows)):
        what = "NaN" if np.any(np.isnan(rows)) else "inf"
        raise ValueError(
            f"Batch {index} contains {what}. Clean or drop those rows; "
            "the state before this batch was kept, so the fit can go on with partial_fit."
        )


def array_batches(X: Any, batch_size: int, *, seed: int, epoch: int = 0, start: int = 0) -> Iterator[NDArray]:
    """Yield one epoch of batches of an array, memmap or CSR matrix in an order set by (seed, epoch).

    In-memory rows are permuted. A memmap is read in contiguous blocks of `batch_size` rows whose order
    is permuted: random access to single rows of a file larger than memory would be seek-bound.

    Args:
        X: Rows.
        batch_size: Rows per batch.
        seed: Seed of the order.
        epoch: Number of the epoch.
        start: First batch to yield, to resume within an epoch.

    Example:
        >>> [len(batch) for batch in array_batches(np.zeros((5, 1)), 2, seed=0)]
        [2, 2, 1]
    """
    n = X.shape[0]
    generator = np.random.default_rng([seed, epoch])
    count = -(-n // batch_size)
    blocks = generator.permutation(count) if isinstance(X, np.memmap) else None
    order = generator.permutation(n) if blocks is None else None
    for index in range(start, count):
        if order is not None:
            selected: Any = order[index * batch_size : (index + 1) * batch_size]
        else:
            assert blocks is not None
            block = int(blocks[index])
            selected = slice(block * batch_size, min((block + 1) * batch_size, n))
        yield dense_rows(X, selected)


def iterable_batches(
    source: Callable[[], Iterable[Any]] | Iterable[Any], batch_size: int
) -> Iterator[NDArray]:
    """Yield the rows of a stream of batches of any sizes, regrouped into batches of one size.

    Raises:
        ValueError: If the stream is empty, or a batch is not two-dimensional, or changes its width or the
            order of its named columns; names the index of the offending batch.

    Example:
        >>> parts = iter([np.zeros((3, 2)), np.zeros((1, 2))])
        >>> [len(batch) for batch in iterable_batches(parts, 2)]
        [2, 2]
    """
    held: list[NDArray] = []
    held_rows, width, columns = 0, None, list[Any]()
    for position, part in enumerate(source() if callable(source) else source):
        pair = isinstance(part, list) and part and len(getattr(part[0], "shape", ())) > 1
        # one sparse format is a dict
        if pair or (isinstance(part, tuple | dict) and not hasattr(part, "toarray")):
            raise ValueError(
                f"Batch {position} is a {type(part).__name__}; yield the (n, d) samples alone, for example "
                "lambda: (x for x, *_ in loader)."
            )
        rows = dense_rows(part)
        if rows.ndim != 2:
            raise ValueError(f"Batch {position} has shape {rows.shape}; pass samples on rows, shape (n, d).")
        if width is not None and rows.shape[1] != width:
            raise ValueError(f"Batch {position} has {rows.shape[1]} features; the earlier ones have {width}.")
        names = list(getattr(part, "columns", []))
        if columns and names and names != columns:
            raise ValueError(f"Batch {position} has columns {names}; those of the first are {columns}.")
        width, columns = rows.shape[1], columns or names
        check_finite(rows, position)
        held.append(rows)
        held_rows += rows.shape[0]
        while held_rows >= batch_size:
            joined = held[0] if len(held) == 1 else np.concatenate(held)
            yield joined[:batch_size]
            held, held_rows = [joined[batch_size:]], held_rows - batch_size
    if held_rows:
        yield np.concatenate(held)
    elif width is None:
        raise ValueError(
            "The iterable yielded no batch. Pass one with at least one (n, d) array; "
            "a callable must return a fresh one at every call."
        )


def chunks(X: Any, size: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `size` rows covering X."""
    for start in range(0, X.shape[0], size):
        yield slice(start, min(start + size, X.shape[0]))
