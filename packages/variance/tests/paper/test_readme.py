"""The Python blocks of the README run as they stand, one after another."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_python_blocks_run(capsys) -> None:  # type: ignore[no-untyped-def]
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 4
    assert "noise scale" in capsys.readouterr().out
