"""What a team writes by hand: one event, one key, every delivery acknowledged once Redis has answered."""

import asyncio
import json
import os

import aio_pika
import redis.asyncio
import uvloop


async def main() -> None:
    pool = redis.asyncio.BlockingConnectionPool.from_url(os.environ["REDIS_URL"], max_connections=50, timeout=None)
    cache = redis.asyncio.Redis(connection_pool=pool)

    async def on_message(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        event = json.loads(message.body)
        await cache.unlink(f"user:{event['data']['id']}")
        await message.ack()

    connection = await aio_pika.connect(os.environ["AMQP_URL"])
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=1000)
    queue = await channel.get_queue(os.environ["QUEUE"], ensure=False)
    await queue.consume(on_message)
    await asyncio.Future()


uvloop.run(main())
