#!/usr/bin/env bash
# The same program as `python -m chaos`, from a fresh clone: packages/chaos/run.sh list
here="$(cd "$(dirname "$0")" && pwd)"
python="$here/../../.venv/bin/python"
[ -x "$python" ] || python="$(command -v python3 || command -v python)"
"$python" -c "import chaos" 2>/dev/null || { echo "chaos is not installed: run 'make dev' in the top folder first." >&2; exit 2; }
exec "$python" -m chaos "$@"
