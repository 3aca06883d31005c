#!/usr/bin/env bash
# Publishes an event from every language of examples/ and sees its effect in Redis, done by a real worker:
#   scripts/test-languages.sh
# Installs the languages' clients (Debian packages, pika from PyPI, amqplib from npm), starts private servers, and stops all it started.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/ports.sh

packages=(
    golang-go golang-github-rabbitmq-amqp091-go-dev librabbitmq-client-java libslf4j-java php-cli php-amqplib ruby ruby-bunny amqp-tools
)
work=$PWD/.local/languages

install() {
    local missing=() package
    command -v redis-cli >/dev/null || packages+=(redis-tools)
    command -v node >/dev/null || packages+=(nodejs)
    command -v npm >/dev/null || packages+=(npm)
    command -v javac >/dev/null || packages+=(default-jdk-headless)
    python3 -c 'import venv, ensurepip' 2>/dev/null || packages+=(python3-venv)
    for package in "${packages[@]}"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
    done
    if [ "${#missing[@]}" -gt 0 ]; then
        local as_root=()
        if [ "$(id -u)" -ne 0 ]; then
            if ! sudo -n true 2>/dev/null; then
                echo "Installing the languages' clients needs root. Run this, then try again:" >&2
                echo "  sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
                exit 1
            fi
            as_root=(sudo -n)
        fi
        echo "Installing with apt-get: ${missing[*]}"
        ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get update -q >/dev/null
        ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
    fi

    mkdir -p "$work/node" "$work/go"
    echo "Installing $(cat examples/python/requirements.txt) from PyPI and $(sed -n 's/.*"\(amqplib\)": "\(.*\)".*/\1 \2/p' examples/node/package.json) from npm, into .local/languages."
    [ -x "$work/python/bin/pip" ] || python3 -m venv "$work/python"
    "$work/python/bin/pip" install --quiet --disable-pip-version-check -r examples/python/requirements.txt
    cp examples/node/package.json examples/node/package-lock.json examples/node/publish.js "$work/node/"
    (cd "$work/node" && npm ci --silent --no-audit --no-fund)
    # Debian's Go packages are sources below /usr/share/gocode: no module is fetched.
    GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE="$work/go/cache" go build -o "$work/go/publish" examples/go/publish.go
    javac -cp /usr/share/java/amqp-client.jar -d "$work/java" examples/java/Publish.java
}

languages=(python node go java php ruby shell)

# publish LANGUAGE TYPE JSON
publish() {
    local language=$1
    shift
    case $language in
        python) "$work/python/bin/python" examples/python/publish.py "$@" ;;
        node) node "$work/node/publish.js" "$@" ;;
        go) "$work/go/publish" "$@" ;;
        java) java -cp "$work/java:/usr/share/java/amqp-client.jar:/usr/share/java/slf4j-api.jar:/usr/share/java/slf4j-nop.jar" Publish "$@" ;;
        php) php examples/php/publish.php "$@" ;;
        ruby) ruby examples/ruby/publish.rb "$@" ;;
        shell) examples/shell/publish.sh "$@" ;;
    esac
}

redis() { redis-cli -u "$UNSTALE_REDIS_URL" "$@"; }
gone() { [ "$(redis EXISTS "$1")" = 0 ]; }
ready() {
    kill -0 "$worker" && [[ $(exec 3<>"/dev/tcp/127.0.0.1/$http_port" && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && head -n 1 <&3) == *" 200 "* ]]
}

# try LANGUAGE: says why not on its last line.
try() {
    local language=$1 key="user:$1" output
    [ "$(redis SET "$key" stale)" = OK ] || { echo "Redis did not take the seed"; return 1; }
    output=$(publish "$language" user.updated "{\"id\": \"$language\"}" 2>&1) || { echo "the publisher failed: $output"; return 1; }
    wait_for 20 "$key is gone" gone "$key" 2>&1 || return 1
    # amqp-publish can ask neither for a return nor for a confirm.
    [ "$language" = shell ] && return 0
    if output=$(publish "$language" nobody.listens '{}' 2>&1); then
        echo "an event that no queue is bound to was published without an error"
        return 1
    fi
    [[ $output == *"was returned"* ]] || { echo "the failure of a returned event does not say so: $output"; return 1; }
}

test_all() {
    local log=$work/worker.log passed=0 failed=0 language why
    http_port=$(free_port)
    UNSTALE_SCHEMAS=examples/registry UNSTALE_HTTP_ADDR="127.0.0.1:$http_port" \
        "${CARGO_TARGET_DIR:-target}/debug/unstale" run </dev/null >"$log" 2>&1 &
    worker=$!
    trap 'kill "$worker" 2>/dev/null; wait "$worker" 2>/dev/null || true' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    if ! wait_for 60 "the worker is ready" ready; then
        tail -n 30 "$log" >&2
        exit 69
    fi
    for language in "${languages[@]}"; do
        if why=$(try "$language"); then
            echo "ok      $language"
            passed=$((passed + 1))
        else
            echo "FAILED  $language: $why"
            failed=$((failed + 1))
        fi
    done
    echo "not run csharp (Debian has no .NET SDK)"
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ]
}

if [ "${1:-}" = --with-servers ]; then
    test_all
else
    install
    cargo build --locked --quiet --bin unstale
    scripts/with-servers.sh "$PWD/scripts/test-languages.sh" --with-servers
fi
