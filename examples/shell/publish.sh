#!/bin/sh
# Publishes one event: publish.sh [TYPE] [JSON]
# amqp-publish (Debian: amqp-tools) can ask neither for a confirm nor for unroutable messages back: success here means sent, not kept.
# Where that matters, use `unstale publish`.
exec amqp-publish --url="${UNSTALE_AMQP_URL:-amqp://guest:guest@127.0.0.1:5672/%2f}" \
    --exchange=events --routing-key="${1:-user.updated}" \
    --persistent --content-type=application/json --body="${2:-{\"id\": 42\}}"
