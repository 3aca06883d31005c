#!/usr/bin/env bash
# Finds dependencies in Cargo.toml that no source file names. Installs cargo-machete where it is
# missing. `[package.metadata.cargo-machete]` in Cargo.toml lists what it may overlook.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.9.2

if [[ $(cargo machete --version 2>/dev/null) != *"$version" ]]; then
    # It runs for a second: a cheap build does.
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        cargo install --locked --force --version "$version" cargo-machete
fi

cargo machete --with-metadata
