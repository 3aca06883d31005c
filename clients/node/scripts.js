// The scripts of the protocol, and their SHA-1, by which Redis knows them.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

const script = (name) => {
  const source = readFileSync(new URL(`lua/${name}.lua`, import.meta.url));
  return { source, sha1: createHash("sha1").update(source).digest("hex") };
};

export const READ = script("read");
export const JOIN = script("join");
export const FILL = script("fill");
export const RELEASE = script("release");
export const SEQUENCE = "unstale:seq";
