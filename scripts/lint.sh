#!/bin/sh
# ruff on the tree; mypy on the installed package, since type checkers cannot follow the folder mapping in place.
set -eu
bin=$1
"$bin/ruff" check .
"$bin/ruff" format --check .
rm -rf .ci-build
"$bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target .ci-build .
MYPYPATH=.ci-build "$bin/python" -m mypy -p sim_eval
