#!/usr/bin/env bash
# The same program as `python -m variance`, from a fresh clone: packages/variance/run.sh list
here="$(cd "$(dirname "$0")" && pwd)"
python="$here/../../.venv/bin/python"
[ -x "$python" ] || python="$(command -v python3 || command -v python)"
"$python" -c "import variance" 2>/dev/null || { echo "variance is not installed: run 'make dev' in the top folder first." >&2; exit 2; }
exec "$python" -m variance "$@"
