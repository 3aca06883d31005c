#!/usr/bin/env bash
# Tests the readers of clients/ (Python, Node) against real servers, beside real workers, and runs the example of each language.
# `make test` has the other tests of the reader in Rust:
#   scripts/test-clients.sh
# Installs what they need from PyPI and npm into .local/clients, starts private servers and a small Redis Cluster, and stops all it started.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/ports.sh

work=$PWD/.local/clients
# The oldest redis-py and ioredis that the clients take, and the newest that they were tested with.
pythons=(redis==5.0.8 redis==8.1.0)
nodes=(ioredis@5.4.2 ioredis@6.0.0)

install() {
    local release
    if ! command -v node >/dev/null || ! command -v npm >/dev/null || ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
        echo "Node 20 with npm, and Python 3.10 with venv are needed. On Debian: apt-get install nodejs npm python3-venv" >&2
        exit 1
    fi
    echo "Installing redis-py from PyPI and ioredis from npm, into .local/clients."
    for release in "${pythons[@]}"; do
        [ -x "$work/$release/bin/pip" ] || python3 -m venv "$work/$release"
        # Built from a copy: a build leaves its traces beside the sources.
        rm -rf "$work/python" && cp -r clients/python "$work/python"
        "$work/$release/bin/pip" install --quiet --disable-pip-version-check --force-reinstall --no-deps "$work/python"
        "$work/$release/bin/pip" install --quiet --disable-pip-version-check "$release" mypy==2.4.1
    done
    for release in "${nodes[@]}"; do
        mkdir -p "$work/$release"
        rm -rf "$work/$release/"{index.js,index.d.ts,options.js,scripts.js,lua,test}
        cp -r clients/node/{package.json,index.js,index.d.ts,options.js,scripts.js,lua,test} "$work/$release/"
        (cd "$work/$release" && npm install --silent --no-audit --no-fund --no-save --legacy-peer-deps "$release" typescript@7.0.2 @types/node@20)
    done
}

redis() { redis-cli -u "$UNSTALE_REDIS_URL" "$@"; }
ready() { [[ $(exec 3<>"/dev/tcp/127.0.0.1/$1" && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && head -n 1 <&3) == *" 200 "* ]]; }

# worker NAME SETTING…: starts a worker and waits until it is ready.
worker() {
    local name=$1 port
    shift
    port=$(free_port)
    # Tests empty Redis: healing would take that for a loss, and invalidate what they fill.
    env UNSTALE_HEAL_WINDOW=off UNSTALE_SCHEMAS="$work/registry" UNSTALE_HTTP_ADDR="127.0.0.1:$port" "$@" \
        "$READERS_TEST_BINARY" run </dev/null >"$work/$name.log" 2>&1 &
    started+=("$!")
    if ! wait_for 60 "the worker is ready" ready "$port"; then
        tail -n 30 "$work/$name.log" >&2
        exit 69
    fi
}

cluster_is_up() { [[ $(redis-cli -p "$1" CLUSTER INFO) == *cluster_state:ok* ]]; }

# Three primaries. Their ports for each other are 10,000 above, which leaves the range of ports.sh: so they are named.
start_cluster() {
    local port bus n addresses=()
    for n in 1 2 3; do
        port=$(free_port) bus=$(free_port)
        mkdir -p "$work/cluster/$n"
        (cd "$work/cluster/$n" && rm -f ./* && exec redis-server --bind 127.0.0.1 --port "$port" --cluster-enabled yes --cluster-port "$bus" \
            --save '' --appendonly no >log 2>&1 </dev/null) &
        started+=("$!")
        wait_for 20 "a node of the cluster answers" redis-cli -p "$port" PING
        addresses+=("127.0.0.1:$port")
    done
    redis-cli --cluster create "${addresses[@]}" --cluster-yes >"$work/cluster/create.log"
    READERS_TEST_CLUSTER=$(IFS=,; echo "${addresses[*]}")
    export READERS_TEST_CLUSTER
    for port in "${addresses[@]#*:}"; do
        wait_for 30 "the cluster is up" cluster_is_up "$port"
    done
}

gone() { [ "$(redis EXISTS "$1")" = 0 ]; }

# example LANGUAGE COMMAND…: its first run loads, its second does not, and after an event it loads again.
example() {
    local language=$1 expected said
    shift
    redis UNLINK user:42 >/dev/null
    for expected in filled hit filled; do
        said=$("$@") || true
        if [[ $said != "$expected "* ]]; then
            echo "FAILED  the example in $language: $expected was expected, not: $said" >&2
            return 1
        fi
        if [ "$expected" = hit ]; then
            "$READERS_TEST_BINARY" publish user.updated '{"id":42}' >/dev/null 2>&1
            wait_for 20 "user:42 is gone" gone user:42
        fi
    done
    echo "ok      the example in $language"
}

test_all() {
    started=()
    trap 'kill "${started[@]}" 2>/dev/null; wait "${started[@]}" 2>/dev/null || true' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    rm -rf "$work/registry" && mkdir "$work/registry" && cp clients/registry/*.yaml examples/registry/*.yaml "$work/registry/"
    start_cluster
    worker single
    # On the same broker, under other names.
    worker cluster UNSTALE_QUEUE=clustered UNSTALE_EXCHANGE=clustered UNSTALE_REDIS_MODE=cluster UNSTALE_REDIS_URL="redis://$READERS_TEST_CLUSTER"
    # As the user whose rights the page names, which the tests' keys and the clients' own commands are added to.
    local rules
    rules=$(sed -n 's/^ACL SETUSER reader //p' docs/reference/reader-scripts.md)
    # shellcheck disable=SC2086 # the words of one command
    redis ACL SETUSER reader ${rules/>PASSWORD/>secret} '~product:*' +ping +info +client >/dev/null
    local address=${UNSTALE_REDIS_URL#redis://}
    export READERS_TEST_URL="redis://reader:secret@${address#*@}"
    local release failed=0
    for release in "${pythons[@]}"; do
        echo "==> Python, $release"
        (cd clients/python/tests && PYTHONDONTWRITEBYTECODE=1 timeout 600 "$work/$release/bin/python" -m unittest --quiet) || failed=1
    done
    "$work/${pythons[-1]}/bin/mypy" --cache-dir "$work/mypy" --config-file clients/python/pyproject.toml clients/python/src || failed=1
    for release in "${nodes[@]}"; do
        echo "==> Node, $release"
        (cd "$work/$release" && timeout 600 npm test --silent) || failed=1
    done
    example Python "$work/${pythons[-1]}/bin/python" examples/python/read.py || failed=1
    # A package finds itself by its own name.
    cp examples/node/read.js "$work/${nodes[-1]}/"
    example Node node "$work/${nodes[-1]}/read.js" || failed=1
    example Rust "${READERS_TEST_BINARY%/*}/examples/read" || failed=1
    [ "$failed" -eq 0 ] || exit 1
    echo "The readers of clients/ pass."
}

if [ "${1:-}" = --with-servers ]; then
    test_all
else
    install
    cargo build --locked --quiet --package unstale --package unstale-reader --bin unstale --example read
    export READERS_TEST_BINARY="$(cd "${CARGO_TARGET_DIR:-target}" && pwd)/debug/unstale"
    scripts/with-servers.sh "$PWD/scripts/test-clients.sh" --with-servers
fi
