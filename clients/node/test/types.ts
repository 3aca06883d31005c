// Compiled, never run: the types say what the code does.
import { Cluster, Redis } from "ioredis";
import { Reader, type Outcome } from "../index.js";

interface Product {
  id: number;
  category: string;
}

const outcomes: Outcome[] = [];
const cache = new Reader(new Redis(), { keyPrefix: "shop:", staleMs: 60_000, observe: (outcome) => outcomes.push(outcome) });
new Reader(new Cluster(["127.0.0.1:7000"]));

export const page: Promise<Buffer | null> = cache.getOrLoad("page:7", () => "<html>", { ttlMs: 1000, tags: ["pages"] });
export const product: Promise<Product | null> = cache.getOrLoadJson<Product>("product:7", async () => ({ id: 7, category: "toys" }), {
  ttlMs: 1000,
  tags: (loaded) => [`category:${loaded.category}`],
});
// @ts-expect-error a TTL is required
cache.getOrLoad("page:7", () => "<html>", {});
// @ts-expect-error no such option
new Reader(new Redis(), { ttl: 5 });
