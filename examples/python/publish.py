"""Publishes one event: python publish.py [TYPE] [JSON]"""
import os
import sys

import pika

event_type = sys.argv[1] if len(sys.argv) > 1 else "user.updated"
body = sys.argv[2] if len(sys.argv) > 2 else '{"id": 42}'
url = os.environ.get("UNSTALE_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f")

with pika.BlockingConnection(pika.URLParameters(url)) as connection:
    channel = connection.channel()
    channel.confirm_delivery()
    properties = pika.BasicProperties(content_type="application/json", delivery_mode=pika.DeliveryMode.Persistent)
    try:
        channel.basic_publish("events", event_type, body.encode(), properties, mandatory=True)
    except pika.exceptions.UnroutableError:
        sys.exit(f"{event_type} was returned: no queue is bound to it")
    except pika.exceptions.NackError:
        sys.exit(f"{event_type} was not taken by the broker")
