#!/usr/bin/env bash
# Checks that the oldest Rust that Cargo.toml claims (`rust-version`) can build the worker and the
# library:
#   scripts/msrv.sh
# 1. No dependency may claim a newer Rust.
# 2. That release compiles them. rustup installs it where it is missing, unless RUSTUP_AUTO_INSTALL=0
#    forbids downloads: then this step is left out, and the script says so.
# What the standard library gained since is a warning of clippy (`incompatible_msrv`), so that
# `make lint` refuses it with any release.
set -euo pipefail
cd "$(dirname "$0")/.."

claimed=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
[ -n "$claimed" ] || { echo "error: Cargo.toml has no rust-version" >&2; exit 1; }
[[ $claimed == *.*.* ]] && release=$claimed || release=$claimed.0

cargo metadata --locked --format-version 1 | python3 -c '
import json, sys

def parts(version):
    return [int(part) for part in version.split(".")]

claimed = sys.argv[1]
newer = [
    "{name} {version} needs Rust {rust_version}".format(**package)
    for package in json.load(sys.stdin)["packages"]
    if package["rust_version"] and parts(package["rust_version"])[:2] > parts(claimed)[:2]
]
for line in newer:
    print("error: Cargo.toml claims Rust {}, but {}".format(claimed, line), file=sys.stderr)
sys.exit(1 if newer else 0)
' "$claimed"
echo "No dependency claims a newer Rust than $claimed."

if ! cargo "+$release" --version >/dev/null 2>&1; then
    if [ "${RUSTUP_AUTO_INSTALL:-1}" = 0 ] || ! command -v rustup >/dev/null; then
        echo "warning: Rust $release is not installed: its compiler has checked nothing" >&2
        echo "help: rustup toolchain install $release --profile minimal" >&2
        exit 0
    fi
    rustup toolchain install "$release" --profile minimal
fi
# In a folder of its own: two compilers in one folder would build everything anew in turn.
CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/msrv" cargo "+$release" check --locked --lib --bins
