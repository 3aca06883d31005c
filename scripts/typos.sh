#!/usr/bin/env bash
# Finds misspelled words, by _typos.toml. Installs typos from PyPI into .local where it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

version=1.52.0
typos=$PWD/.local/typos/bin/typos

if [[ $("$typos" --version 2>/dev/null) != "typos-cli $version" ]]; then
    if python3 -m pip --version >/dev/null 2>&1; then
        rm -rf .local/typos
        python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore \
            --no-deps --target .local/typos "typos==$version"
    else
        cargo install --locked --force --version "$version" --root "$PWD/.local/typos" typos-cli
    fi
fi

"$typos" "$@"
