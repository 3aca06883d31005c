#!/usr/bin/env bash
# Installs the libraries of the peers into a folder of their own: install.sh FOLDER
set -euo pipefail
programs=$(cd "$(dirname "$0")" && pwd)
folder=$1

missing=()
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)
python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
if [ "${#missing[@]}" -gt 0 ]; then
    echo "The peers need ${missing[*]}. On Debian: sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
    exit 69
fi

mkdir -p "$folder/node"
cp "$programs"/node/{package.json,package-lock.json,worker.js} "$folder/node/"
if ! cmp -s "$programs/node/package-lock.json" "$folder/node/installed"; then
    (cd "$folder/node" && npm ci --silent --no-audit --no-fund)
    cp "$programs/node/package-lock.json" "$folder/node/installed"
fi
if ! cmp -s "$programs/python/requirements.txt" "$folder/python/installed"; then
    python3 -m venv "$folder/python"
    "$folder/python/bin/pip" install --quiet --disable-pip-version-check -r "$programs/python/requirements.txt"
    cp "$programs/python/requirements.txt" "$folder/python/installed"
fi
