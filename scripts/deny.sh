#!/usr/bin/env bash
# Holds Cargo.lock to deny.toml: licences, sources and bans always, advisories where their database
# can be reached.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.20.2
database=https://github.com/RustSec/advisory-db
# The last review of Cargo.lock by hand, for where the database is out of reach. A new review
# changes both dates.
reviewed="with the database of 2025-02-24, of the dependencies of November 2026: 72 advisories name crates in use, none applies to their versions"

if [[ $(cargo deny --version 2>/dev/null) != "cargo-deny $version" ]]; then
    # It runs for seconds: a build without optimisation takes three minutes of CPU, one with it
    # takes many more.
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        cargo install --locked --force --no-default-features --version "$version" cargo-deny
fi

cargo deny --locked --log-level warn check --hide-inclusion-graph licenses sources bans

if GIT_TERMINAL_PROMPT=0 timeout 20 git ls-remote --exit-code "$database" HEAD >/dev/null 2>&1; then
    cargo deny --locked check advisories
else
    echo "advisories: not checked, since $database cannot be reached"
    echo "advisories: last review $reviewed"
fi
