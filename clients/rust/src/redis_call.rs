//! Runs one command or script within its time.

use std::sync::LazyLock;

use redis::aio::ConnectionLike;
use redis::{Cmd, ErrorKind, RedisError, Script, ServerErrorKind, Value};

use super::Reader;
use crate::protocol::scripts::{FILL, JOIN, READ, RELEASE};

/// A script, and its SHA-1, by which Redis knows it.
pub(super) struct NamedScript {
    source: &'static str,
    sha1: String,
}

macro_rules! named {
    ($name:ident, $source:ident) => {
        pub(super) static $name: LazyLock<NamedScript> = LazyLock::new(|| NamedScript {
            source: $source,
            sha1: Script::new($source).get_hash().to_owned(),
        });
    };
}

named!(READ_SCRIPT, READ);
named!(JOIN_SCRIPT, JOIN);
named!(FILL_SCRIPT, FILL);
named!(RELEASE_SCRIPT, RELEASE);

/// Redis did not run it, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Away;

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Reader<C> {
    /// Returns a command's answer.
    pub(super) async fn ask(&self, command: &Cmd) -> Result<Value, Away> {
        self.send(command).await.map_err(|_| Away)
    }

    /// Returns a script's answer. Calls it by its SHA-1, and with its source if this server does
    /// not know it yet.
    pub(super) async fn run(
        &self,
        script: &NamedScript,
        keys: &[&[u8]],
        arguments: &[&[u8]],
    ) -> Result<Value, Away> {
        let call = |command: &str, what: &str| {
            let mut command = redis::cmd(command);
            command.arg(what).arg(keys.len()).arg(keys).arg(arguments);
            command
        };
        match self.send(&call("EVALSHA", &script.sha1)).await {
            Err(Some(error)) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.ask(&call("EVAL", script.source)).await
            }
            answer => answer.map_err(|_| Away),
        }
    }

    /// Sends a command. Callers must not show the error: it may quote what was sent.
    async fn send(&self, command: &Cmd) -> Result<Value, Option<RedisError>> {
        let mut connection = self.connection.clone();
        match tokio::time::timeout(self.options.timeout, command.query_async(&mut connection)).await
        {
            Ok(answer) => answer.map_err(Some),
            Err(_) => Err(None),
        }
    }
}
