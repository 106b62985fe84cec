//! The projector on a real database: a log that the domain filled, and what the rows must be by the fold alone.

mod checkpoints;
mod commands;
mod epoch;
mod live;
mod rebuilds;
mod service;
mod sharing;
mod sizes;
mod snapshots;

use std::collections::{BTreeMap, BTreeSet};

use daybook_event_bus::{Bus, Deployment};
use daybook_event_store::{EventStore, NewCommand, RecordedEvent};
use daybook_projector::checkpoint::{self, Claim, Lease};
use daybook_projector::database::Connector;
use daybook_projector::feed::Feed;
use daybook_projector::memory::Memory;
use daybook_projector::metrics::Metrics;
use daybook_projector::replica::{self, Duties};
use daybook_projector::worker::{Context, Step, Worker};
use daybook_read_model::{ReadModel, each_read_model};
use daybook_service::metrics::Registry;
use daybook_tests::database::Database;
use daybook_tests::{check, log, wait};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use tokio::sync::watch;
use uuid::Uuid;

use self::commands::{Orders, append_stock, foreign_event, unknown_event};

/// An address where there is no NATS: workers must do without.
const NO_NATS: &str = "nats://127.0.0.1:1";

/// A database of its own.
struct Setup {
    database: Database,
    /// A pool that may do everything.
    superuser: PgPool,
    command: PgPool,
    /// What shows that the replicas live.
    sessions: tokio::sync::Mutex<Vec<PgConnection>>,
}

impl Setup {
    /// Makes it.
    async fn new() -> Self {
        Self::on(Database::create().await.expect("a database")).await
    }

    async fn on(database: Database) -> Self {
        // Those of `Orders` and of `unknown_event`.
        let tenants: Vec<_> = (1..=100).map(Uuid::from_u128).collect();
        database.add_tenants(&tenants).await.expect("tenants");
        let superuser = PgPool::connect(&database.superuser_url()).await;
        let command = database.pool("daybook_command").await;
        Self {
            superuser: superuser.expect("a superuser"),
            command: command.expect("the command role"),
            database,
            sessions: tokio::sync::Mutex::default(),
        }
    }

    /// A projector process that lives, and to which all work falls.
    async fn process(&self) -> Context {
        self.process_with_duties().await.1
    }

    /// The same, whose duties can be changed.
    async fn process_with_duties(&self) -> (watch::Sender<Duties>, Context) {
        let duties = Duties {
            owner: Uuid::now_v7(),
            live: BTreeMap::from(each_read_model!(M => (M::NAME.to_owned(), BTreeSet::from([0])))),
            rebuilds: BTreeSet::from(each_read_model!(M => M::NAME.to_owned())),
            ..Duties::default()
        };
        self.join(duties.owner).await;
        let (duties, assigned) = watch::channel(duties);
        (duties, self.context(assigned).await)
    }

    /// Enters a replica that lives as long as this database.
    async fn join(&self, id: Uuid) {
        let connector = Connector::new(&self.database.url("daybook_projector")).expect("a valid address");
        let mut session = connector.connect("replica").await.expect("a connection");
        let joining = replica::join(&mut session, id, &[0]);
        joining.await.expect("a new replica");
        self.sessions.lock().await.push(session);
    }

    /// What a projector process has, with these duties.
    async fn context(&self, duties: watch::Receiver<Duties>) -> Context {
        let connector = Connector::new(&self.database.url("daybook_projector")).expect("a valid address");
        Context {
            store: EventStore::new(connector.pool(4)),
            connector,
            bus: Bus::connect(NO_NATS, &Deployment::default(), "test")
                .await
                .expect("it connects in the background"),
            memory: Memory::divide(512 << 20, 1, 1),
            metrics: Metrics::new(&Registry::new()),
            duties,
            reconnected_at: watch::Sender::default(),
        }
    }

    /// Every replica that there is dies; their workers know nothing of it.
    async fn kill_replicas(&self) {
        self.execute("DELETE FROM read_model.replica").await;
    }

    /// A worker of a process, without a feed: it reads the log alone.
    async fn worker<M: ReadModel>(&self) -> Worker<M> {
        Worker::new(self.process().await, 0, &Feed::default())
    }

    /// Runs a statement as superuser and gives its only value.
    async fn value<T>(&self, statement: &str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        let row = sqlx::query_scalar(AssertSqlSafe(statement))
            .fetch_one(&self.superuser)
            .await;
        row.unwrap_or_else(|error| panic!("{statement}: {error}"))
    }

    /// Runs a statement as superuser.
    async fn execute(&self, statement: &str) {
        let done = sqlx::query(AssertSqlSafe(statement))
            .execute(&self.superuser)
            .await;
        done.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }

    /// The position of the newest event.
    async fn head(&self) -> u64 {
        log::head(&self.superuser).await.expect("the log can be read")
    }

    /// Where the live tables of a projection are.
    async fn position(&self, projection: &str) -> u64 {
        let live = daybook_read_model::checkpoint::live(&self.superuser).await;
        let live = live.expect("checkpoints");
        let checkpoint = live.iter().find(|checkpoint| checkpoint.projection == projection);
        checkpoint.expect("it has one").position
    }

    /// The generation that is live.
    async fn live_generation(&self, projection: &str) -> i32 {
        let live = check::live_generation(&self.superuser, projection).await;
        live.expect("there is one").get()
    }

    /// Every event, in order.
    async fn log(&self) -> Vec<RecordedEvent> {
        log::events(&self.superuser).await.expect("the log can be read")
    }

    /// Appends commands that have been decided.
    async fn append(&self, mut commands: Vec<NewCommand>) {
        // The commands of a chain are side by side.
        commands.sort_by(|a, b| a.stream_id.cmp(&b.stream_id));
        let mut connection = self.command.acquire().await.expect("a connection");
        let judgement = daybook_event_store::append(&mut connection, 0, &commands)
            .await
            .expect("an answer");
        assert!(log::is_written_whole(&commands, &judgement), "{judgement:?}");
    }

    /// The live rows are what a fold of the whole log gives.
    async fn assert_equals_fold<M: ReadModel>(&self) {
        let events = self.log().await;
        let head = events.last().map_or(0, |event| event.position);
        assert_eq!(self.position(M::NAME).await, head, "{}", M::NAME);
        let events = check::decoded(&events).expect("valid events");
        let checked = check::read_model::<M>(&self.superuser, &events).await;
        checked.expect("it equals the fold");
    }

    /// A digest of all the rows of a table or view.
    async fn digest(&self, table: &str) -> String {
        check::digest(&self.superuser, table).await.expect("there is one")
    }
}

/// Takes the lease on the live tables of a read model.
async fn claim<M: ReadModel>(process: &Context) -> (PgConnection, Claim) {
    let owner = process.duties.borrow().owner;
    let connected = process.connector.connect("test").await;
    let mut connection = connected.expect("a connection");
    let patient = sqlx::query("SET idle_in_transaction_session_timeout = 0");
    patient.execute(&mut connection).await.expect("a setting");
    let claimed = checkpoint::claim_live(&mut connection, M::NAME, 0, owner).await;
    (connection, claimed.expect("an answer"))
}

/// Takes the lease on the live tables of a read model, which is to be had.
async fn hold<M: ReadModel>(process: &Context) -> (PgConnection, Lease) {
    match claim::<M>(process).await {
        (connection, Claim::Held(lease)) => (connection, lease),
        (_, refused) => panic!("{refused:?}"),
    }
}

/// Steps until there is nothing to do; an error is a failure of the test.
async fn drain<M: ReadModel>(worker: &mut Worker<M>) -> Step {
    loop {
        match worker.step().await.expect("a step") {
            Step::Progressed => {}
            idle => return idle,
        }
    }
}

/// Waits until something is true.
async fn eventually(what: &str, mut is_true: impl AsyncFnMut() -> bool) {
    let waited = wait::until(what, async || Ok(is_true().await)).await;
    waited.expect("it comes true");
}
