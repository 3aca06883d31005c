#!/usr/bin/env bash
# Runs the integration tests against the servers of later Debian releases, each release in a root of its own:
#   scripts/test-matrix.sh [PAIR…] [-- ARGUMENT…]     arguments are the test program's, such as names of tests
# Pairs are trixie-redis, sid-valkey and trixie-valkey; without one, all three. A root is made once, in two minutes and with root rights
# (scripts/install-server-root.sh), and kept. UNSTALE_TEST_ROOTS names another folder for roots than .local/roots.
set -euo pipefail
cd "$(dirname "$0")/.."

pairs=()
while [ $# -gt 0 ]; do
    case $1 in
        --) shift; break ;;
        trixie-redis | sid-valkey | trixie-valkey) pairs+=("$1"); shift ;;
        *) sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 64 ;;
    esac
done
[ "${#pairs[@]}" -gt 0 ] || pairs=(trixie-redis sid-valkey trixie-valkey)

cargo test --locked --no-run --test it

failed=()
for pair in "${pairs[@]}"; do
    release=${pair%-*} cache=${pair#*-}
    if ! root=$(scripts/install-server-root.sh "$release"); then
        echo "$pair: there is no root of Debian $release to run it in" >&2
        failed+=("$pair")
        continue
    fi
    rabbitmq=$(scripts/in-server-root.sh "$root" /usr/lib/rabbitmq/bin/rabbitmqctl version)
    echo "==> $pair: RabbitMQ $rabbitmq, $(scripts/in-server-root.sh "$root" "/usr/bin/$cache-server" --version | cut -d' ' -f1-3)"
    UNSTALE_TEST_ROOT=$root UNSTALE_TEST_REDIS=$cache cargo test --locked --test it -- "$@" || failed+=("$pair")
done
if [ "${#failed[@]}" -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
