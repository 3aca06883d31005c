"""The same by way of a framework, which checks each event against a model."""

import os

import redis.asyncio
import uvloop
from faststream import FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from pydantic import BaseModel


class User(BaseModel):
    id: int
    email: str
    plan: str


class UserUpdated(BaseModel):
    id: str
    type: str
    data: User


pool = redis.asyncio.BlockingConnectionPool.from_url(os.environ["REDIS_URL"], max_connections=50, timeout=None)
cache = redis.asyncio.Redis(connection_pool=pool)
broker = RabbitBroker(os.environ["AMQP_URL"], default_channel=Channel(prefetch_count=1000), logger=None)


@broker.subscriber(RabbitQueue(os.environ["QUEUE"], declare=False))
async def handle(event: UserUpdated) -> None:
    await cache.unlink(f"user:{event.data.id}")


uvloop.run(FastStream(broker, logger=None).run())
