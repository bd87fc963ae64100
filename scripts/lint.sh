#!/bin/sh
# ruff and mypy on the tree as it stands.
set -eu
bin=$1
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/python" -m mypy -p sim_eval
