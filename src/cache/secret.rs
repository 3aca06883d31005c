//! The secret with which workers sign the headers of republished messages. All workers of a Redis
//! share it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use redis::Value;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::Cache;
use super::failure::{CommandError, Outage};
use super::side_keys::SECRET;

/// Number of bytes of a new secret: as many as a signature has.
const SECRET_BYTES: usize = 32;

/// Minimum length. No worker makes a shorter secret.
const SHORTEST_BYTES: usize = 16;

impl Cache {
    /// Returns the secret in Redis. If there is none, stores `ours`, or else a new one.
    ///
    /// # Errors
    /// An outage, or Redis refuses.
    pub async fn signing_secret(&self, ours: Option<&str>) -> Result<String, CommandError> {
        let offered = match ours {
            Some(ours) => ours.to_owned(),
            None => new_secret()?,
        };
        let mut command = redis::cmd("SET");
        command.arg(SECRET).arg(&offered).arg("NX").arg("GET");
        match self.call("SET", command).await? {
            Value::Nil => Ok(offered),
            Value::BulkString(kept) if kept.len() >= SHORTEST_BYTES => {
                Ok(String::from_utf8_lossy(&kept).into_owned())
            }
            _ => Err(CommandError::Failed(
                "unstale:secret does not hold a secret of unstale: delete it, and workers make a new one"
                    .into(),
            )),
        }
    }
}

fn new_secret() -> Result<String, Outage> {
    let mut bytes = [0; SECRET_BYTES];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Outage::new("the operating system gives no random bytes for a secret"))?;
    Ok(BASE64.encode(bytes))
}
