//! The log on a real Postgres: what the append function promises, whoever calls it and in whatever order.

mod append;
mod appender;
mod digest;
mod keys;
mod lineage;
mod roles;
mod tail;
mod takeover;

use std::collections::HashMap;

use daybook_event_store::{
    Appender, AppenderOptions, Decision, Intent, Judgement, NewCommand, RecordedEvent, append, chains,
};
use daybook_tests::database::Database;
use daybook_tests::log;
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

const TENANT: Uuid = Uuid::from_u128(1);

/// A database and a connection that may append.
struct Log {
    database: Database,
    connection: PgConnection,
}

impl Log {
    async fn new() -> anyhow::Result<Self> {
        let database = Database::create().await?;
        let tenants: Vec<Uuid> = (1..6).map(Uuid::from_u128).collect();
        database.add_tenants(&tenants).await?;
        let connection = PgConnection::connect(&database.url("daybook_command")).await?;
        Ok(Self { database, connection })
    }

    /// Appends one batch, and says in short what became of each of its commands.
    async fn append(&mut self, commands: &[NewCommand]) -> anyhow::Result<Vec<String>> {
        let judgement = append(&mut self.connection, 0, commands).await?;
        Ok(short(&judgement, commands))
    }

    /// An appender of its own, running.
    async fn appender(&self, options: AppenderOptions) -> anyhow::Result<Appender> {
        let (appender, appending) = Appender::new(self.database.log().await?, 0, options, None);
        tokio::spawn(appending);
        Ok(appender)
    }

    /// Everything that is in the log, in order.
    async fn events(&self) -> anyhow::Result<Vec<RecordedEvent>> {
        log::events(&self.database.pool("daybook_publisher").await?).await
    }
}

/// A command with `events` events, decided on `decided_on`, under a key of its own.
fn command(stream_id: &str, decided_on: Option<Uuid>, events: usize) -> NewCommand {
    let payload = |index| format!(r#"{{"index":  {index}, "index": 1}}"#);
    let events = (0..events).map(|index| log::event(payload(index)));
    log::command(TENANT, stream_id, decided_on, events.collect())
}

/// A command that was decided on what this one leads to.
fn after(command: &NewCommand, events: usize) -> NewCommand {
    self::command(&command.stream_id, leads_to(command), events)
}

fn question(stream_id: &str, key: &str) -> NewCommand {
    let mut question = with_key(command(stream_id, None, 0), key);
    question.intent = Intent::Ask;
    question
}

fn with_key(mut command: NewCommand, key: &str) -> NewCommand {
    command.key = key.into();
    command
}

fn decision(command: &NewCommand) -> &Decision {
    match &command.intent {
        Intent::Write(decision) => decision,
        Intent::Ask => panic!("a question decides nothing"),
    }
}

fn decision_mut(command: &mut NewCommand) -> &mut Decision {
    match &mut command.intent {
        Intent::Write(decision) => decision,
        Intent::Ask => panic!("a question decides nothing"),
    }
}

fn leads_to(command: &NewCommand) -> Option<Uuid> {
    decision(command).leads_to()
}

/// What became of each command: the first position of its chain and how it stands, or why not.
fn short(judgement: &Judgement, commands: &[NewCommand]) -> Vec<String> {
    let mut of_each = Vec::new();
    for (range, chain) in chains(commands).into_iter().zip(&judgement.chains) {
        for index in range {
            of_each.push(if judgement.known.contains(&index) {
                "known".to_owned()
            } else if index < chain.written_end {
                format!("written@{}", chain.first_position)
            } else {
                format!("not written, newest v{}", chain.newest.version)
            });
        }
    }
    of_each
}

fn assert_dense(events: &[RecordedEvent]) {
    let mut versions: HashMap<(Uuid, &str), u64> = HashMap::new();
    for (event, position) in events.iter().zip(1..) {
        assert_eq!(event.position, position, "positions have a hole or an inversion");
        let version = versions.entry((event.tenant_id, &event.stream_id)).or_default();
        *version += 1;
        assert_eq!(
            event.stream_version, *version,
            "versions of {} are not dense",
            event.stream_id
        );
    }
}
