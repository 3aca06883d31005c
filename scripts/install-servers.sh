#!/usr/bin/env bash
# Installs what the demo and the tests start: redis-server and rabbitmq-server, as Debian packages. Does nothing where both are there.
# The services that Debian starts by itself on installing are not started; those that already run are left alone.
set -euo pipefail

has() {
    # A user's PATH on Debian lacks the sbin folders.
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/usr/lib/rabbitmq/bin/$1" ]
}

missing=()
has redis-server || missing+=(redis-server)
has rabbitmq-server || missing+=(rabbitmq-server)
if [ "${#missing[@]}" -eq 0 ]; then
    exit 0
fi
command="apt-get install -y --no-install-recommends ${missing[*]}"

if ! command -v apt-get >/dev/null 2>&1; then
    echo "Missing: ${missing[*]}. This is no Debian: install Redis (7.0 or newer) and RabbitMQ (3.10 or newer) with your package manager," >&2
    echo "on macOS: brew install redis rabbitmq" >&2
    exit 1
fi
if [ "$(id -u)" -eq 0 ]; then
    as_root=()
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root=(sudo -n)
else
    echo "Missing: ${missing[*]}. Installing them needs root. Run this, then try again:" >&2
    echo "  sudo $command" >&2
    exit 1
fi

echo "Installing ${missing[*]} with apt-get (their services are not started; we run private instances)."

# Debian's packages ask this file whether they may start their services: 101 is no (invoke-rc.d's interface).
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
fi

"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q
# shellcheck disable=SC2086 # the words of one command
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive $command

for program in redis-server rabbitmq-server; do
    has "$program" || { echo "$program is still missing after: $command" >&2; exit 1; }
done
if [ -d /run/systemd/system ]; then
    echo "systemd starts them at the next boot. If you do not want that: systemctl disable ${missing[*]}"
fi
