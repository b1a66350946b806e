#!/usr/bin/env bash
# The browser tests drive a real Chromium. Installs it with apt where it is missing, and says so; where it cannot, it fails.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then exit 0; fi
done
echo "Chromium is missing: the browser tests need it. Installing it with apt ..."
if ! command -v apt-get >/dev/null; then
  echo "There is no apt-get here. Install Chromium (or Google Chrome) by hand, so that it is on the PATH, and run make test again." >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "Not root and no sudo: run 'apt-get install chromium' as root, then make test again." >&2; exit 1; }
  as_root=(sudo)
fi
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null
command -v chromium >/dev/null || { echo "apt installed no chromium: install a Chromium by hand and run make test again." >&2; exit 1; }
chromium --version
