#!/usr/bin/env bash
# Builds the site of docs/ into target/docs-site. Installs mdBook into .local where it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.5.4
mdbook=$PWD/.local/mdbook/bin/mdbook

if [[ $("$mdbook" --version 2>/dev/null) != "mdbook v$version" ]]; then
    # It runs for a second: a build without optimisation is the shorter one.
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        cargo install --locked --force --no-default-features --features search \
        --version "$version" --root "$PWD/.local/mdbook" mdbook
fi

"$mdbook" build
scripts/check_site.py
echo "Built target/docs-site/index.html"
