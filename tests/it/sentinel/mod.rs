//! A primary that three sentinels watch: found, given up, and found again.

mod discovery;
mod failover;
