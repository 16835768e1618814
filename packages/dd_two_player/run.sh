#!/usr/bin/env bash
# The same program as `python -m dd_two_player`, from a fresh clone: packages/dd_two_player/run.sh list
here="$(cd "$(dirname "$0")" && pwd)"
python="$here/../../.venv/bin/python"
[ -x "$python" ] || python="$(command -v python3 || command -v python)"
"$python" -c "import dd_two_player" 2>/dev/null || { echo "dd_two_player is not installed: run 'make dev' in the top folder first." >&2; exit 2; }
exec "$python" -m dd_two_player "$@"
