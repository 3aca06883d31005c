//! Deletions while the server refuses commands that need memory.

use redis::{Cmd, Pipeline};

use super::super::commands::CHUNK_COMMANDS;
use super::super::connection_state::Connect;
use super::super::failure::Outage;
use super::super::without_memory;
use super::Single;

impl Single {
    /// See [`Backend::delete_apart`](super::super::backend::Backend::delete_apart).
    pub(in crate::cache) async fn delete_apart(&self, commands: &[Cmd]) -> Result<(), Outage> {
        let mut apart = self.apart.lock().await;
        // A failure leaves no connection behind.
        let socket = match apart.take() {
            Some(socket) => socket,
            None => self.connection.connect().connect().await?,
        };
        for commands in commands.chunks(CHUNK_COMMANDS) {
            let mut pipeline = Pipeline::with_capacity(commands.len());
            for command in commands {
                pipeline.add_command(command.clone());
            }
            without_memory::check(&socket.send(&pipeline).await?)?;
        }
        *apart = Some(socket);
        Ok(())
    }
}
