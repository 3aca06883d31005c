//! Deletions in a cluster while its nodes refuse commands that need memory.

use redis::Cmd;

use super::super::commands::CHUNK_COMMANDS;
use super::super::connection_state::Connect;
use super::super::failure::Outage;
use super::super::without_memory;
use super::Cluster;
use super::checkpoint_writes::Unconfirmed;

impl Cluster {
    /// See [`Backend::delete_apart`](super::super::backend::Backend::delete_apart).
    pub(in crate::cache) async fn delete_apart(&self, commands: &[Cmd]) -> Result<(), Outage> {
        let mut apart = self.apart.lock().await;
        // A failure leaves no connections behind.
        let nodes = match apart.take() {
            Some(nodes) => nodes,
            None => self.connection.connect().connect().await?,
        };
        for commands in commands.chunks(CHUNK_COMMANDS) {
            let commands: Vec<&Cmd> = commands.iter().collect();
            let answers =
                self.run_or_fail(&nodes, &commands, None, &mut Unconfirmed::default()).await?;
            without_memory::check(&answers)?;
        }
        *apart = Some(nodes);
        Ok(())
    }
}
