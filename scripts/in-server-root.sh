#!/bin/sh
# Runs a program in a root that scripts/install-server-root.sh made: in-server-root.sh ROOT PROGRAM [ARGUMENT…]
# The program keeps this process's id, environment and network, and sees the same /tmp, /proc and /dev. The mounts are its own.
set -eu
root=$1
shift
exec unshare --mount --propagation private sh -c '
    set -eu
    root=$0
    for shared in /tmp /proc /dev; do
        mount --rbind "$shared" "$root$shared"
    done
    exec chroot "$root" "$@"
' "$root" "$@"
