//! Effects of many events → one coalesced batch; outcomes → a settlement. Knows no socket, clock or runtime.
