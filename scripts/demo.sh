#!/usr/bin/env bash
# Called by with-servers.sh: starts a worker on schemas/, plays the tour against it and stops it. Fails
# where any step of the tour fails.
#   demo.sh DIRECTORY     where the programs `unstale` and `tour` are
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/ports.sh

programs=$1
mkdir -p .local
log=$(mktemp "$PWD/.local/worker.XXXXXX")
http_port=$(free_port)
loader_port=$(free_port)
export UNSTALE_HTTP_ADDR="127.0.0.1:$http_port"
export UNSTALE_SCHEMAS=schemas
export UNSTALE_VAR_CATALOGUE_URL="http://127.0.0.1:$loader_port"
export UNSTALE_VAR_CATALOGUE_TOKEN="demo-token"

worker=
finish() {
    local status=$?
    trap '' INT TERM
    if [ -n "$worker" ] && kill -TERM "$worker" 2>/dev/null; then
        local stopped=0
        wait "$worker" || stopped=$?
        if [ "$status" -eq 0 ] && [ "$stopped" -ne 0 ]; then
            echo "The worker did not stop cleanly: exit code $stopped" >&2
            status=1
        fi
    fi
    if [ "$status" -ne 0 ] && [ "$status" -lt 128 ]; then
        echo "The end of the worker's log:" >&2
        tail -n 40 "$log" >&2
    fi
    rm -f "$log"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

ready() {
    local answer
    kill -0 "$worker" 2>/dev/null || return 0
    exec 4<>"/dev/tcp/127.0.0.1/$http_port" && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&4 && read -r -t 2 answer <&4 && [[ $answer == *" 200 "* ]]
}

echo "Starting a worker on schemas/."
set -m # a process group of its own: Ctrl-C ends the tour, and the worker is then told to stop
"$programs/unstale" run >"$log" 2>&1 &
worker=$!
set +m
wait_for 60 "the worker is ready" ready
if ! kill -0 "$worker" 2>/dev/null; then
    echo "The worker ended at start." >&2
    exit 1
fi

"$programs/tour"
