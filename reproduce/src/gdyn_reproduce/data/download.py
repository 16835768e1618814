"""Fetching published files, on explicit request only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def fetch(name: str, files: Mapping[str, tuple[str, str | None]], folder: Path) -> None:
    """Download the files of a data set that are missing, checking their hashes.

    Args:
        name: Of the data set, for messages.
        files: Path under `folder` to (URL, ``"md5:..."`` or None).
        folder: Data folder; created.

    Raises:
        ConnectionError: If a file cannot be fetched or is not the published one; the message says
            how to put it in place by hand.
    """
    import pooch

    for relative, (url, known_hash) in files.items():
        target = folder / relative
        if target.exists():
            continue
        try:
            pooch.retrieve(url, known_hash, fname=target.name, path=target.parent, progressbar=False)
        except Exception as error:  # network libraries raise many kinds; the advice is the same
            reason = " ".join(str(error).split())[:200]
            raise ConnectionError(
                f"{name}: could not fetch {target.name} ({reason}). "
                f"Get {url} by other means and save it as {target}."
            ) from None
