//! Checks whether Redis may evict keys that invalidation depends on: tags' sets, fences, counters,
//! and drains in progress.

use redis::Value;

use super::Cache;
use super::answer::text;
use super::failure::{self, CommandError, Outage};

/// Behaviour of Redis when its memory is full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Eviction {
    /// It refuses writes or has no limit, so it evicts none of our keys.
    Safe,
    /// It may evict our keys.
    Risky {
        /// Value of `maxmemory-policy`.
        policy: String,
        /// Keys at risk, and the consequence.
        consequence: &'static str,
    },
    /// It does not show its policy.
    Unknown,
}

impl Cache {
    /// Asks Redis for its `maxmemory-policy`: by `INFO`, which most servers allow, else by
    /// `CONFIG`.
    ///
    /// # Errors
    /// An outage.
    pub async fn eviction(&self) -> Result<Eviction, Outage> {
        let mut info = redis::cmd("INFO");
        info.arg("memory");
        let answer = match self.call("INFO", info).await {
            Ok(value) => from_info(&value),
            Err(CommandError::Outage(outage)) => return Err(outage),
            Err(_) => None,
        };
        if let Some(eviction) = answer {
            return Ok(eviction);
        }
        let mut config = redis::cmd("CONFIG");
        config.arg("GET").arg("maxmemory").arg("maxmemory-policy");
        match self.call("CONFIG", config).await {
            Ok(value) => Ok(from_config(&value).unwrap_or(Eviction::Unknown)),
            Err(CommandError::Outage(outage)) => Err(outage),
            Err(_) => Ok(Eviction::Unknown),
        }
    }
}

impl Cache {
    /// Fails if Redis may evict keys that invalidation needs, for a setting that refuses such a
    /// Redis.
    ///
    /// # Errors
    /// An outage, or Redis may evict such keys, or does not show whether it may.
    pub(super) async fn refuse_eviction(&self) -> Result<(), Outage> {
        match self.eviction().await? {
            Eviction::Safe => Ok(()),
            Eviction::Risky { policy, consequence } => {
                Err(failure::evicts(&format!("maxmemory-policy {policy}: Redis {consequence}")))
            }
            Eviction::Unknown => {
                Err(failure::evicts("Redis does not show its maxmemory-policy: grant +info"))
            }
        }
    }
}

fn from_info(value: &Value) -> Option<Eviction> {
    let text = text(value)?;
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    judge(field("maxmemory"), field("maxmemory_policy")?)
}

fn from_config(value: &Value) -> Option<Eviction> {
    let pairs: Vec<(&Value, &Value)> = match value {
        Value::Map(pairs) => pairs.iter().map(|(name, value)| (name, value)).collect(),
        Value::Array(items) => items.chunks_exact(2).map(|pair| (&pair[0], &pair[1])).collect(),
        _ => return None,
    };
    let field = |wanted: &str| {
        pairs.iter().find(|(name, _)| text(name) == Some(wanted)).and_then(|(_, value)| text(value))
    };
    judge(field("maxmemory"), field("maxmemory-policy")?)
}

/// Judges a policy. Without a limit nothing is evicted; an unknown limit counts as a limit.
fn judge(maxmemory: Option<&str>, policy: &str) -> Option<Eviction> {
    let consequence = match policy {
        "noeviction" => return Some(Eviction::Safe),
        "volatile-ttl" => {
            "may evict fences, and sets of tags, mostly after their members: remaining members of such a set stay until their TTL, and an older write \
             may replace a newer one"
        }
        policy if policy.starts_with("volatile-") => {
            "may evict sets of tags before their members, and fences: no tag then reaches these members, which stay until their \
             TTL, and an older write may replace a newer one"
        }
        policy if policy.starts_with("allkeys-") => {
            "may evict sets of tags before their members, fences, counters of bump_version and drains under way: stale values may stay until their \
             TTL, or come back"
        }
        _ => return Some(Eviction::Unknown),
    };
    if maxmemory == Some("0") {
        return Some(Eviction::Safe);
    }
    Some(Eviction::Risky { policy: policy.to_owned(), consequence })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_limit_with_a_policy_that_evicts_is_a_risk() {
        for (maxmemory, policy, risky) in [
            (Some("0"), "allkeys-lru", false),
            (Some("1048576"), "noeviction", false),
            (Some("1048576"), "allkeys-lru", true),
            (Some("1048576"), "allkeys-random", true),
            (Some("1048576"), "volatile-lfu", true),
            (Some("1048576"), "volatile-ttl", true),
            (None, "volatile-lru", true),
        ] {
            let found = judge(maxmemory, policy);
            assert_eq!(
                matches!(found, Some(Eviction::Risky { .. })),
                risky,
                "{maxmemory:?} {policy}"
            );
        }
        assert_eq!(judge(Some("1"), "of-a-newer-redis"), Some(Eviction::Unknown));
    }

    #[test]
    fn answers_to_info_and_config_are_read() {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let info = bulk(
            "# Memory\r\nused_memory:1\r\nmaxmemory:1048576\r\nmaxmemory_human:1M\r\nmaxmemory_policy:allkeys-lru\r\n",
        );
        assert!(
            matches!(from_info(&info), Some(Eviction::Risky { policy, .. }) if policy == "allkeys-lru")
        );
        assert_eq!(from_info(&bulk("# Server\r\nredis_version:7.0.15\r\n")), None);
        let names = ["maxmemory", "maxmemory-policy"].map(bulk);
        let values = ["0", "allkeys-lru"].map(bulk);
        let flat = Value::Array(
            names
                .clone()
                .into_iter()
                .zip(values.clone())
                .flat_map(|(name, value)| [name, value])
                .collect(),
        );
        assert_eq!(from_config(&flat), Some(Eviction::Safe));
        assert_eq!(
            from_config(&Value::Map(names.into_iter().zip(values).collect())),
            Some(Eviction::Safe)
        );
        assert_eq!(from_config(&Value::Array(vec![])), None);
    }
}
