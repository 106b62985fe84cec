//! Full batches straight through the append function, on one connection: the log without the appender in front of it.

use daybook_event_store::{NewCommand, append};
use daybook_tests::log::{PARTITION, is_written_whole};
use daybook_tests::orders::new_key;
use daybook_tests::stack::Servers;
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use crate::append::command;

/// Commands in one call, as many as the appender sends at the most.
const BATCH_COMMANDS: usize = 1_024;

/// What idempotency keys look like.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Keys {
    /// UUIDv7: they come in the order of time, as our own clients send them.
    TimeOrdered,
    /// UUIDs at random: they come in no order.
    Random,
}

impl Keys {
    fn next(self) -> String {
        match self {
            Self::TimeOrdered => new_key(),
            Self::Random => Uuid::from_u128(rand::random()).to_string(),
        }
    }
}

/// The connection that appends.
pub(crate) struct Batches {
    connection: PgConnection,
    tenant_id: Uuid,
}

impl Batches {
    pub(crate) async fn connect(servers: &Servers) -> anyhow::Result<Self> {
        let tenant_id = Uuid::now_v7();
        servers.database.add_tenants(&[tenant_id]).await?;
        Ok(Self {
            connection: PgConnection::connect(&servers.database.url("daybook_command")).await?,
            tenant_id,
        })
    }

    /// Appends a full batch of one-event commands, each on a stream of its own; gives how many events that were.
    pub(crate) async fn append_full(&mut self, keys: Keys) -> anyhow::Result<u64> {
        let commands: Vec<NewCommand> = (0..BATCH_COMMANDS)
            .map(|_| NewCommand {
                key: keys.next().into(),
                ..command(self.tenant_id, 1)
            })
            .collect();
        self.append(&commands).await?;
        Ok(BATCH_COMMANDS as u64)
    }

    /// Appends a batch of which every command has to be recorded.
    pub(crate) async fn append(&mut self, commands: &[NewCommand]) -> anyhow::Result<()> {
        let judgement = append(&mut self.connection, PARTITION, commands).await?;
        anyhow::ensure!(is_written_whole(commands, &judgement), "{judgement:?}");
        Ok(())
    }
}
