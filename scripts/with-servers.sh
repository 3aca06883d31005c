#!/usr/bin/env bash
# Runs a command with a private Redis and RabbitMQ, told to it as UNSTALE_REDIS_URL and UNSTALE_AMQP_URL, and stops them when it ends:
#   scripts/with-servers.sh COMMAND [ARGUMENT…]
#   scripts/with-servers.sh --prepare     installs them where they are missing, and starts nothing
# Every run has its own folder under .local/ and its own free ports, so that several can run side by side. Where the servers are not
# installed and a Docker engine answers, they run in containers instead (docker-compose.yml).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/ports.sh

if [ $# -eq 0 ]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 64
fi

# The script that does not switch to another user, before the wrapper that does.
find_program() {
    local candidate
    for candidate in "/usr/lib/rabbitmq/bin/$1" "$(command -v "$1" || true)" "/usr/sbin/$1"; do
        if [ -n "$candidate" ] && [ -x "$candidate" ]; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

in_containers() {
    ! { find_program rabbitmq-server && find_program redis-server; } >/dev/null &&
        command -v docker >/dev/null 2>&1 && docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1
}

containers=no
if in_containers; then
    containers=yes
else
    scripts/install-servers.sh
fi
if [ "$1" = --prepare ]; then
    exit 0
fi

mkdir -p .local
dir=$(mktemp -d "$PWD/.local/servers.XXXXXX")
project="unstale-$(basename "$dir" | tr -cd 'a-zA-Z0-9' | tr 'A-Z' 'a-z')"

# Stops what it was told of when its pipe closes, which happens however this script ends, `kill -9` included.
stop_everything() {
    trap '' INT TERM HUP
    local what groups=() containers=no
    while read -r what; do
        case $what in
            containers) containers=yes ;;
            *) groups+=("$what") ;;
        esac
    done
    local group
    for group in ${groups[@]+"${groups[@]}"}; do
        # Their data goes with them: nothing is worth a slow farewell.
        kill -9 -- "-$group" 2>/dev/null || true
    done
    if [ "$containers" = yes ]; then
        docker compose -p "$project" down --volumes --timeout 1 || true
    fi
    # Again for what a dying server's own children still wrote.
    rm -rf -- "$dir" 2>/dev/null || { sleep 1; rm -rf -- "$dir"; }
}
exec 9> >(stop_everything)
stopper=$!
trap 'exec 9>&-; wait "$stopper" || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# start NAME PROGRAM…: in a process group of its own, so that Ctrl-C ends the command first and the servers after it.
start() {
    local name=$1
    shift
    set -m
    "$@" </dev/null >"$dir/$name.log" 2>&1 9>&- &
    set +m
    disown
    echo "$!" >&9
    started=$!
}

listens() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

redis_answers() {
    local answer
    exec 4<>"/dev/tcp/127.0.0.1/$redis_port" && printf 'PING\r\n' >&4 && read -r -t 2 answer <&4 && [ "${answer%$'\r'}" = +PONG ]
}

# RabbitMQ opens its listener last; Connection.Start (class 10, method 10) in answer to the protocol header is the proof.
rabbitmq_answers() {
    local frame
    frame=$(exec 4<>"/dev/tcp/127.0.0.1/$amqp_port" && printf 'AMQP\0\0\11\1' >&4 && timeout 2 head -c 11 <&4 | od -An -tx1 | tr -d ' \n')
    [ "${frame:0:2}" = 01 ] && [ "${frame:14:8}" = 000a000a ]
}

# must_answer SECONDS NAME CHECK: or says why not.
must_answer() {
    if ! wait_for "$1" "$2 answers" "$3"; then
        echo "The end of its log:" >&2
        tail -n 30 "$dir/$2.log" >&2
        exit 69
    fi
}

start_installed() {
    local rabbitmq=$1 redis=$2
    redis_port=$(free_port) amqp_port=$(free_port)
    local dist_port epmd_port
    dist_port=$(free_port) epmd_port=$(free_port)
    echo "Starting a private Redis on port $redis_port and RabbitMQ on port $amqp_port (data in ${dir#"$PWD"/}, removed at the end)."

    start redis "$redis" --bind 127.0.0.1 --port "$redis_port" --dir "$dir" --save '' --appendonly no

    mkdir "$dir/rabbitmq"
    echo '[].' >"$dir/rabbitmq/enabled_plugins"
    echo 'disk_free_limit.absolute = 50MB' >"$dir/rabbitmq/rabbitmq.conf"
    # In the foreground and first: a node that finds none starts one that outlives it.
    start epmd epmd -address 127.0.0.1 -port "$epmd_port"
    wait_for 10 "epmd listens" listens "$epmd_port"
    # RUNNING_UNDER_SYSTEMD makes the script become the server instead of waiting on it.
    start rabbitmq env -u RABBITMQ_HOME HOME="$dir/rabbitmq" ERL_EPMD_PORT="$epmd_port" RUNNING_UNDER_SYSTEMD=true \
        RABBITMQ_NODENAME="unstale-$amqp_port@localhost" \
        RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT="$amqp_port" RABBITMQ_DIST_PORT="$dist_port" \
        RABBITMQ_MNESIA_BASE="$dir/rabbitmq/mnesia" RABBITMQ_LOG_BASE="$dir/rabbitmq/log" RABBITMQ_PID_FILE="$dir/rabbitmq/pid" \
        RABBITMQ_ENABLED_PLUGINS_FILE="$dir/rabbitmq/enabled_plugins" RABBITMQ_CONFIG_FILE="$dir/rabbitmq/rabbitmq.conf" \
        RABBITMQ_ADVANCED_CONFIG_FILE="$dir/rabbitmq/advanced.config" RABBITMQ_CONF_ENV_FILE="$dir/rabbitmq/env.conf" \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}' \
        "$rabbitmq"
    must_answer 20 redis redis_answers
    must_answer 120 rabbitmq rabbitmq_answers
    export UNSTALE_REDIS_URL="redis://127.0.0.1:$redis_port/0"
    export UNSTALE_AMQP_URL="amqp://guest:guest@127.0.0.1:$amqp_port/%2f"
}

start_containers() {
    echo "Starting Redis and RabbitMQ in containers (Compose project $project, removed at the end)."
    echo containers >&9
    AMQP_PORT=0 REDIS_PORT=0 MANAGEMENT_PORT=0 docker compose -p "$project" up --detach --wait rabbitmq redis
    local amqp redis
    amqp=$(docker compose -p "$project" port rabbitmq 5672)
    redis=$(docker compose -p "$project" port redis 6379)
    # The users of demo/: one that may everything, for the worker and the tour alike.
    export UNSTALE_REDIS_URL="redis://default:shop-demo@$redis/0"
    export UNSTALE_AMQP_URL="amqp://admin:admin-demo@$amqp/%2f"
}

if [ "$containers" = yes ]; then
    start_containers
else
    start_installed "$(find_program rabbitmq-server)" "$(find_program redis-server)"
fi

# From here on Ctrl-C is the command's: its exit code is the answer.
trap : INT
status=0
"$@" 9>&- || status=$?
exit "$status"
