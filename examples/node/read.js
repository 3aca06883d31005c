// Reads a user through the cache: node read.js [ID]
import { Redis } from "ioredis";
import { Reader } from "unstale-reader";

const [id = "42"] = process.argv.slice(2);
const client = new Redis(process.env.UNSTALE_REDIS_URL ?? "redis://127.0.0.1:6379/0", { maxRetriesPerRequest: 1 });
client.on("error", () => {}); // the reader loads without it
const outcomes = [];
const cache = new Reader(client, { observe: (outcome) => outcomes.push(outcome) });

/** Stands for a query of the primary database. */
async function loadUser() {
  await new Promise((resolve) => setTimeout(resolve, 100));
  return { id, team: "blue", loaded: new Date().toTimeString().slice(0, 8) };
}

const user = await cache.getOrLoadJson(`user:${id}`, loadUser, {
  ttlMs: 3_600_000,
  tags: (user) => [`team:${user.team}`],
});
console.log(outcomes[0], user);
client.disconnect();
