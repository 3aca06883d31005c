"""Both readers on a real Redis Cluster: the fill in its three steps, and in one where a hash tag puts everything into one slot."""

from __future__ import annotations

import asyncio

import redis

from stage import CLUSTER, HOUR, SOON, Async, Held, Source, Stage, Sync

admin = redis.RedisCluster(startup_nodes=[redis.cluster.ClusterNode(host, int(port)) for host, port in CLUSTER])

KEYS = [("product:{}", "products"), ("{{shop}}:product:{}", "{shop}:products"), ("product:{{{}}}", "products")]
"""Forms of keys with a tag: in other slots, in one slot, with a hash tag of the key's own."""


def side(kind: str, name: str) -> str:
    return f"unstale:{kind}:{name}" if "}" in name else f"unstale:{kind}/{{{name}}}"


class Scenarios(Stage):
    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        admin.flushall(target_nodes=redis.RedisCluster.PRIMARIES)

    def invalidate_key(self, key: str) -> None:
        """As the worker does: the lease no later than the value."""
        admin.unlink(side("lease", key), key)

    def invalidate_tag(self, tag: str) -> None:
        """As the worker does: a number of the sequence first, then the generation, then the members with their leases."""
        tag_set = f"cache_tag:{tag}"
        admin.set(side("gen", tag_set), admin.incr("unstale:seq"), px=3_600_000)
        for member in admin.smembers(tag_set):
            self.invalidate_key(member.decode())
        admin.delete(tag_set)

    async def test_a_value_is_filled_with_its_tags_and_read_again(self) -> None:
        reader = self.cluster()
        for form, tag in KEYS:
            for n in range(20):
                key, source = form.format(n), Source(b"v")
                self.assertEqual(await reader.get_or_load(key, source, HOUR, [tag]), b"v")
                self.assertEqual(await reader.get_or_load(key, source, HOUR, [tag]), b"v")
                self.assertEqual(source.loads, 1)
                self.assertTrue(admin.sismember(f"cache_tag:{tag}", key))
                self.assertFalse(admin.exists(side("lease", key)))
        self.assertEqual(self.told(), ["filled", "hit"] * 60)

    async def test_an_invalidation_during_the_load_voids_it(self) -> None:
        reader = self.cluster(lease=60)
        for form, tag in KEYS:
            for by_tag in (False, True):
                for tags in ([tag], lambda _, tag=tag: [tag]):
                    with self.subTest(form=form, by_tag=by_tag, tags=tags):
                        key, held = form.format(7), Held()
                        read = asyncio.create_task(reader.get_or_load(key, held, HOUR, tags))
                        await asyncio.wait_for(held.begun.wait(), SOON)
                        self.invalidate_tag(tag) if by_tag else self.invalidate_key(key)
                        held.end.set()
                        self.assertEqual(await read, b"old")
                        self.assertEqual(self.told(), ["void"])
                        self.assertFalse(admin.exists(key))
                        self.assertFalse(admin.exists(side("lease", key)))

    async def test_two_hundred_readers_of_one_key_cost_one_load(self) -> None:
        reader, source = self.cluster(), Source()
        values = await asyncio.gather(*(reader.get_or_load("product:7", source, HOUR, ["products"]) for _ in range(200)))
        self.assertEqual(set(values), {b"new"})
        self.assertEqual(source.loads, 1)

    async def test_a_key_without_a_side_key_in_its_slot_is_loaded_and_not_cached(self) -> None:
        reader = self.cluster()
        self.assertEqual(await reader.get_or_load("a}b", Source(b"v"), HOUR), b"v")
        self.assertEqual(await reader.get_or_load("k", Source(b"v"), HOUR, ["a}b"]), b"v")
        self.assertEqual(self.told(), ["away", "away"])
        self.assertFalse(admin.exists("a}b") or admin.exists("k") or admin.exists(side("lease", "k")))


class TestReader(Scenarios):
    kind = Sync()


class TestAsyncReader(Scenarios):
    kind = Async()


del Scenarios, Stage  # they are no tests by themselves
