"""Reads a user through the cache: python read.py [ID]"""
import os
import sys
import time

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from unstale_reader import Reader

user_id = sys.argv[1] if len(sys.argv) > 1 else "42"
client = redis.Redis.from_url(
    os.environ.get("UNSTALE_REDIS_URL", "redis://127.0.0.1:6379/0"),
    socket_timeout=0.5,
    socket_connect_timeout=0.5,
    retry=Retry(NoBackoff(), 1),
)
outcomes = []
cache = Reader(client, observe=outcomes.append)


def load_user():
    """Stands for a query of the primary database."""
    time.sleep(0.1)
    return {"id": user_id, "team": "blue", "loaded": time.strftime("%H:%M:%S")}


user = cache.get_or_load_json(
    f"user:{user_id}", load_user, ttl=3600, tags=lambda user: [f"team:{user['team']}"]
)
print(outcomes[0], user)
