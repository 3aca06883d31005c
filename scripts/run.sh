#!/usr/bin/env bash
# Called by with-servers.sh: says where the servers are, then becomes the worker.
set -euo pipefail
cat <<END

RabbitMQ  $UNSTALE_AMQP_URL
Redis     $UNSTALE_REDIS_URL

Publish from another terminal, in any language, or with:
  UNSTALE_AMQP_URL=$UNSTALE_AMQP_URL $1 publish user.updated '{"id":42}'
Ctrl-C stops the worker, then the servers.

END
exec "$1" run
