#!/usr/bin/env bash
# Called by with-servers.sh: starts the catalogue that the sample rules load from, says where everything is, and runs the worker.
#   run.sh WORKER CATALOGUE
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/ports.sh

if [ -z "${UNSTALE_VAR_CATALOGUE_URL:-}" ]; then
    export UNSTALE_VAR_CATALOGUE_URL="http://127.0.0.1:$(free_port)"
    # It serves until its standard input ends, which it does however this script ends.
    exec 8> >(exec "$2" catalogue)
fi
export UNSTALE_VAR_CATALOGUE_TOKEN="${UNSTALE_VAR_CATALOGUE_TOKEN:-demo-token}"

cat <<END

RabbitMQ  $UNSTALE_AMQP_URL
Redis     $UNSTALE_REDIS_URL
Catalogue $UNSTALE_VAR_CATALOGUE_URL

In another terminal, in this directory, from any language (README.md, examples/), or with:
  export UNSTALE_AMQP_URL='$UNSTALE_AMQP_URL' UNSTALE_REDIS_URL='$UNSTALE_REDIS_URL'
  $1 publish user.updated '{"id":42}'
Ctrl-C stops the worker, then the servers.

END

# Ctrl-C is the worker's: it stops cleanly, and its exit code is the answer.
trap : INT
status=0
"$1" run 8>&- || status=$?
exit "$status"
