"""Both readers on a real Redis Cluster, beside a real worker: the fill in its three steps, and in one where a hash tag puts everything into one slot."""

from __future__ import annotations

import asyncio

import redis

from stage import CLUSTER, HOUR, SOON, Async, Held, Source, Stage, Sync, applied, wait_until

admin = redis.RedisCluster(startup_nodes=[redis.cluster.ClusterNode(host, int(port)) for host, port in CLUSTER])

KEYS = [("product:{}", "products"), ("{{shop}}:product:{}", "{shop}:products"), ("product:{{{}}}", "products")]
"""Forms of keys with a tag: in other slots, in one slot, with a hash tag of the key's own."""


def side(kind: str, name: str) -> str:
    return f"unstale:{kind}:{name}" if "}" in name else f"unstale:{kind}/{{{name}}}"


class Scenarios(Stage):
    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        admin.flushall(target_nodes=redis.RedisCluster.PRIMARIES)

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

    async def test_an_event_during_the_load_voids_it(self) -> None:
        reader = self.cluster(lease=60)
        for form, tag in KEYS:
            key, generation = form.format(7), side("gen", f"cache_tag:{tag}")
            for event, left in (("product.changed", None), ("products.imported", None), ("product.priced", b'"5"')):
                for tags in ([tag], lambda _, tag=tag: [tag]):
                    with self.subTest(form=form, event=event, tags=tags):
                        admin.delete(key)
                        held, before = Held(), admin.get(generation)
                        read = asyncio.create_task(reader.get_or_load(key, held, HOUR, tags))
                        await asyncio.wait_for(held.begun.wait(), SOON)
                        await applied(event, '{"id":7,"price":"5"}', admin, "clustered")
                        # In a cluster the marker may be ahead of other slots.
                        if event == "products.imported":
                            await wait_until("the tag is invalidated", lambda: admin.get(generation) != before)
                        else:
                            await wait_until("the lease is void", lambda: not admin.exists(side("lease", key)))
                        held.end.set()
                        self.assertEqual(await read, b"old")
                        self.assertEqual(self.told(), ["void"])
                        self.assertEqual(admin.get(key), left)
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
