#!/usr/bin/env bash
# Makes a root with the servers of a later Debian release, for tests beside this machine's own servers:
#   scripts/install-server-root.sh trixie|sid     prints the root's folder (.local/roots/RELEASE)
# It needs root rights and debootstrap, which it installs where apt-get is there. A root that is complete is kept as it is. DEBIAN_MIRROR
# names another mirror than deb.debian.org, UNSTALE_TEST_ROOTS another folder for roots.
set -euo pipefail
cd "$(dirname "$0")/.."

release=${1:?usage: scripts/install-server-root.sh trixie|sid}
case $release in
    trixie | sid) ;;
    *) echo "unknown release \`$release\`: trixie and sid are known" >&2; exit 64 ;;
esac
root=${UNSTALE_TEST_ROOTS:-$PWD/.local/roots}/$release
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
if [ -e "$root/complete" ]; then
    echo "$root"
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "A root of Debian $release is made by debootstrap, which needs root rights. Run this as root:" >&2
    echo "  scripts/install-server-root.sh $release" >&2
    exit 1
fi

step="installing debootstrap"
failed() {
    echo "scripts/install-server-root.sh: $step failed (its own words are above). Is $mirror within reach? DEBIAN_MIRROR names another one." >&2
}
trap failed ERR
{
    command -v debootstrap >/dev/null || { apt-get update -q && apt-get install -y -q --no-install-recommends debootstrap; }
    rm -rf "$root"
    mkdir -p "$root"
    step="debootstrap of $release from $mirror"
    debootstrap --variant=minbase "$release" "$root" "$mirror" || { tail -n 5 "$root/debootstrap/debootstrap.log"; false; }
    # A mirror that is frozen at an older day has an index that is no longer valid.
    printf 'Acquire::Check-Valid-Until "false";\n' >"$root/etc/apt/apt.conf.d/90valid-until"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    # Without it RabbitMQ looks for `localhost` for 50 s and gives up.
    printf '127.0.0.1 localhost %s\n::1 localhost\n' "$(hostname)" >"$root/etc/hosts"
    # Packages must not start their services: 101 is "no" to invoke-rc.d.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    for setting in /etc/apt/apt.conf.d/*proxy*; do
        if [ -e "$setting" ]; then cp "$setting" "$root/etc/apt/apt.conf.d/"; fi
    done
    step="installing the servers of $release from $mirror"
    scripts/in-server-root.sh "$root" sh -c \
        'set -e
         export DEBIAN_FRONTEND=noninteractive
         apt-get update -q -o APT::Update::Error-Mode=any
         apt-get install -y -q --no-install-recommends rabbitmq-server redis-server redis-sentinel valkey-server
         apt-get clean'
    touch "$root/complete"
} >&2
echo "$root"
