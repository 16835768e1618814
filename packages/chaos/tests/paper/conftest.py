from __future__ import annotations

import sys
from pathlib import Path

from gdyn_reproduce.testing import pytest_runtest_setup  # noqa: F401  (skips tests whose data are absent)

sys.path.insert(0, str(Path(__file__).parent))
