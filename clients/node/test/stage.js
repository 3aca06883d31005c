// What the tests stand on: the Redis, the broker and the worker that scripts/test-clients.sh started.
import { execFile } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";

import { Cluster, Redis } from "ioredis";

import { Reader } from "../index.js";

export const HOUR = { ttlMs: 3_600_000 };
export const READER_URL = process.env.READERS_TEST_URL;
const NODES = process.env.READERS_TEST_CLUSTER.split(",").map((node) => ({ host: node.split(":")[0], port: Number(node.split(":")[1]) }));

const open = [];
export const opened = (client) => {
  client.on("error", () => {});
  open.push(client);
  return client;
};
export const closeAll = () => open.splice(0).forEach((client) => client.disconnect());

export const admin = () => opened(new Redis(process.env.UNSTALE_REDIS_URL));
export const cluster = () => opened(new Cluster(NODES));

/** A reader as the user whose rights docs/reference/reader-scripts.md names, with what it was told of its reads. */
export function reader(options = {}, client = opened(new Redis(READER_URL))) {
  const told = [];
  const reader = new Reader(client, { observe: (outcome) => told.push(outcome), ...options });
  return { reader, told: () => told.splice(0) };
}

/** Publishes an event, and waits until the worker has applied it. */
export async function applied(redis, event, data = "{}", exchange = "events") {
  await redis.set("marker", "there");
  const options = { timeout: 30_000, env: { ...process.env, UNSTALE_EXCHANGE: exchange } };
  await promisify(execFile)(process.env.READERS_TEST_BINARY, ["publish", event, data], options);
  await waitUntil(`${event} is applied`, async () => !(await redis.exists("marker")));
}

export async function waitUntil(what, holds) {
  for (let n = 0; n < 3_000; n++) {
    if (await holds()) return;
    await sleep(10);
  }
  throw new Error(`after 30 s still not so: ${what}`);
}

/** A source of values that counts its loads. */
export function source(value = "new") {
  const load = async () => {
    load.loads += 1;
    await sleep(20);
    return value;
  };
  load.loads = 0;
  return load;
}

/** A load that stands still until it is told to end. */
export function held(value = "old") {
  const begun = Promise.withResolvers?.() ?? resolvers();
  const end = Promise.withResolvers?.() ?? resolvers();
  const load = async () => {
    begun.resolve();
    await end.promise;
    return value;
  };
  return Object.assign(load, { begun: begun.promise, end: end.resolve });
}

function resolvers() {
  const all = {};
  all.promise = new Promise((resolve, reject) => Object.assign(all, { resolve, reject }));
  return all;
}

export const fail = async () => {
  throw new Error("no database");
};
export const text = (value) => value?.toString();
