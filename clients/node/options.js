// Checked options of a reader, and the names of its keys.

/** Maximum duration of a lease. Tags remember their invalidations for ten times as long. */
const LONGEST_LEASE_MS = 360_000;

/** Default maximum time to wait for another load. It is raised to a longer lease. */
const DEFAULT_WAIT_MS = 10_000;

const DEFAULTS = {
  keyPrefix: "",
  tagPrefix: "cache_tag:",
  leaseMs: 5_000,
  waitMs: undefined,
  staleMs: 0,
  jitter: 0.1,
  timeoutMs: 1_000,
  observe: () => {},
};

export function checked(options) {
  for (const name of Object.keys(options)) {
    if (!(name in DEFAULTS)) throw new TypeError(`${name}: no such option; there are ${Object.keys(DEFAULTS).join(", ")}`);
  }
  const all = { ...DEFAULTS, ...Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) };
  for (const name of ["leaseMs", "timeoutMs"]) all[name] = millis(name, all[name], 1);
  all.waitMs ??= Math.max(DEFAULT_WAIT_MS, all.leaseMs);
  for (const name of ["waitMs", "staleMs"]) all[name] = millis(name, all[name], 0);
  if (all.leaseMs > LONGEST_LEASE_MS) throw new RangeError(`leaseMs: at most ${LONGEST_LEASE_MS}`);
  if (all.waitMs < all.leaseMs) {
    throw new RangeError(`waitMs: at least leaseMs (${all.leaseMs}), or all waiting readers load at once after the holder died`);
  }
  if (!(all.jitter >= 0 && all.jitter <= 1)) throw new RangeError("jitter: from 0 to 1");
  return all;
}

export function millis(name, value, least) {
  if (typeof value !== "number" || !(value >= least) || value > Number.MAX_SAFE_INTEGER) {
    throw new RangeError(`${name}: a number of milliseconds from ${least}`);
  }
  return Math.trunc(value);
}

/** Returns a TTL with jitter, so that keys filled together do not all expire together. */
export const drawn = (ttlMs, jitter) => Math.max(1, ttlMs - Math.trunc(ttlMs * jitter * Math.random()));

/**
 * Returns the side key of a key, in the same slot of a Redis Cluster. A key with a `}` and no hash
 * tag has no side key in its slot.
 */
export const sideKey = (kind, key) => (key.includes("}") ? `unstale:${kind}:${key}` : `unstale:${kind}/{${key}}`);

/** Returns the part of a key that decides the slot: a hash tag that is not empty, else all of it. */
export function hashTag(key) {
  const open = key.indexOf("{");
  const close = open < 0 ? -1 : key.indexOf("}", open);
  return close > open + 1 ? key.slice(open + 1, close) : key;
}
