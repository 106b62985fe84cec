//! A migrated database for each test, commands that fill its log, and what the rows must be by the fold alone.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

mod commands;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use daybook_devstack::testing::{TestCluster, test_cluster};
use daybook_event_bus::{Bus, Deployment};
use daybook_event_store::{EventStore, NewCommand, RecordedEvent};
use daybook_projector::checkpoint::{self, Claim, Lease};
use daybook_projector::database::Connector;
use daybook_projector::feed::Feed;
use daybook_projector::metrics::Metrics;
use daybook_projector::replica::{self, Duties};
use daybook_projector::worker::{Context, Step, Worker};
use daybook_read_model::{Event, Generation, ReadModel, each_read_model};
use daybook_service::metrics::Registry;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};
use tokio::sync::watch;
use uuid::Uuid;

pub(crate) use self::commands::{Orders, append_stock, foreign_event, unknown_event};

/// How long anything may take in a test.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// An address where there is no NATS: workers must do without.
pub(crate) const NO_NATS: &str = "nats://127.0.0.1:1";

const ROLES: [&str; 4] = [
    "daybook_command",
    "daybook_publisher",
    "daybook_projector",
    "daybook_query",
];

/// A database of its own.
pub(crate) struct Setup {
    cluster: TestCluster,
    name: String,
    /// A pool that may do everything.
    pub(crate) superuser: PgPool,
    command: PgPool,
    /// What shows that the replicas live.
    sessions: tokio::sync::Mutex<Vec<PgConnection>>,
}

impl Setup {
    /// Makes it.
    pub(crate) async fn new() -> Self {
        let cluster = test_cluster().await.expect("a server for tests");
        let template = template_name();
        let build = async |url: String| -> anyhow::Result<()> {
            let mut connection = PgConnection::connect(&url).await?;
            daybook_event_store::migrator().run(&mut connection).await?;
            daybook_read_model::migrator().run(&mut connection).await?;
            // The tenants of `Orders` and of `unknown_event`.
            sqlx::raw_sql(
                "INSERT INTO event_store.tenant (tenant_id, name, partition)
                 SELECT lpad(to_hex(number), 32, '0')::uuid, 't-' || number, 0 FROM generate_series(1, 100) AS number",
            )
            .execute(&mut connection)
            .await?;
            connection.close().await?;
            cluster.enable_login(&ROLES).await?;
            Ok(())
        };
        cluster
            .ensure_template(&template, build)
            .await
            .expect("a template");
        let name = format!("daybook_{}", Uuid::now_v7().simple());
        cluster
            .create_database(&name, Some(&template))
            .await
            .expect("a database");
        Self {
            superuser: PgPool::connect(&cluster.superuser_url(&name))
                .await
                .expect("a superuser"),
            command: PgPool::connect(&cluster.url("daybook_command", &name))
                .await
                .expect("the command role"),
            cluster,
            name,
            sessions: tokio::sync::Mutex::default(),
        }
    }

    /// The address for the projector's role.
    pub(crate) fn projector_url(&self) -> String {
        self.cluster.url("daybook_projector", &self.name)
    }

    /// The log as the publishing task sees it.
    pub(crate) async fn publisher_store(&self) -> EventStore {
        let url = self.cluster.url("daybook_publisher", &self.name);
        EventStore::new(PgPool::connect(&url).await.expect("the publisher's role"))
    }

    /// A projector process that lives, and to which all work falls.
    pub(crate) async fn process(&self) -> Context {
        self.process_with_duties().await.1
    }

    /// The same, whose duties can be changed.
    pub(crate) async fn process_with_duties(&self) -> (watch::Sender<Duties>, Context) {
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
    pub(crate) async fn join(&self, id: Uuid) {
        let connector = Connector::new(&self.projector_url()).expect("a valid address");
        let mut session = connector.connect("replica").await.expect("a connection");
        let joining = replica::join(&mut session, id, &[0]);
        joining.await.expect("a new replica");
        self.sessions.lock().await.push(session);
    }

    /// What a projector process has, with these duties.
    pub(crate) async fn context(&self, duties: watch::Receiver<Duties>) -> Context {
        let connector = Connector::new(&self.projector_url()).expect("a valid address");
        Context {
            store: EventStore::new(connector.pool(4)),
            connector,
            bus: Bus::connect(NO_NATS, &Deployment::default())
                .await
                .expect("it connects in the background"),
            metrics: Metrics::new(&Registry::new()),
            duties,
            reconnects: watch::Sender::default(),
        }
    }

    /// Every replica that there is dies; their workers know nothing of it.
    pub(crate) async fn kill_replicas(&self) {
        self.execute("DELETE FROM read_model.replica").await;
    }

    /// A worker of a process, without a feed: it reads the log alone.
    pub(crate) async fn worker<M: ReadModel>(&self) -> Worker<M> {
        Worker::new(self.process().await, 0, &Feed::default())
    }

    /// Runs a statement as superuser and gives its only value.
    pub(crate) async fn value<T>(&self, statement: &str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        let row = sqlx::query_scalar(AssertSqlSafe(statement))
            .fetch_one(&self.superuser)
            .await;
        row.unwrap_or_else(|error| panic!("{statement}: {error}"))
    }

    /// Runs a statement as superuser.
    pub(crate) async fn execute(&self, statement: &str) {
        let done = sqlx::query(AssertSqlSafe(statement))
            .execute(&self.superuser)
            .await;
        done.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }

    /// The position of the newest event.
    pub(crate) async fn head(&self) -> u64 {
        self.value::<i64>("SELECT head FROM event_store.head(0)")
            .await
            .cast_unsigned()
    }

    /// Where the live tables of a projection are.
    pub(crate) async fn position(&self, projection: &str) -> u64 {
        let statement = format!(
            "SELECT c.position FROM read_model.checkpoint AS c
             JOIN read_model.projection AS p ON p.name = c.projection AND p.live_generation = c.generation
             WHERE p.name = '{projection}'"
        );
        self.value::<i64>(&statement).await.cast_unsigned()
    }

    /// The generation that is live.
    pub(crate) async fn live_generation(&self, projection: &str) -> i32 {
        self.value(&format!(
            "SELECT live_generation FROM read_model.projection WHERE name = '{projection}'"
        ))
        .await
    }

    /// Every event, in order.
    pub(crate) async fn log(&self) -> Vec<RecordedEvent> {
        let context = self.process().await;
        let mut events = Vec::<RecordedEvent>::new();
        loop {
            let last = events.last().map_or(0, |event| event.position);
            let read = context.store.read_log(0, last, 10_000).await;
            let read = read.expect("the log can be read");
            if read.is_empty() {
                return events;
            }
            events.extend(read);
        }
    }

    /// Appends commands that have been decided.
    pub(crate) async fn append(&self, mut commands: Vec<NewCommand>) {
        // The commands of a chain are side by side.
        commands.sort_by(|a, b| a.stream_id.cmp(&b.stream_id));
        let mut connection = self.command.acquire().await.expect("a connection");
        let judgement = daybook_event_store::append(&mut connection, 0, &commands)
            .await
            .expect("an answer");
        assert!(judgement.stands_whole(&commands), "{judgement:?}");
    }

    /// The live rows are what a fold of the whole log gives.
    pub(crate) async fn assert_equals_fold<M: ReadModel>(&self) {
        let log = self.log().await;
        assert_eq!(
            self.position(M::NAME).await,
            log.last().map_or(0, |event| event.position),
            "{}",
            M::NAME
        );
        let expected = folded::<M>(&log);
        let tables = Generation::new(self.live_generation(M::NAME).await).expect("a positive number");
        let mut connection = self.superuser.acquire().await.expect("a connection");
        let keys: Vec<_> = expected.keys().cloned().collect();
        let actual = M::load(&mut connection, tables, &keys)
            .await
            .expect("rows can be loaded");
        drop(connection);
        let count: i64 = self
            .value(&format!("SELECT count(*) FROM read_model.{}", M::NAME))
            .await;
        assert_eq!(usize::try_from(count), Ok(expected.len()), "{}", M::NAME);
        for (key, row) in &expected {
            assert_eq!(actual.get(key), Some(row), "{}", M::NAME);
        }
    }

    /// A digest of all the rows of a table or view.
    pub(crate) async fn digest(&self, table: &str) -> String {
        self.value(&format!(
            "SELECT count(*) || ' ' || md5(coalesce(string_agg(t::text, '|' ORDER BY t::text COLLATE \"C\"), ''))
             FROM read_model.{table} AS t"
        ))
        .await
    }
}

/// Named by what is in the migrations, so that an old template is never taken for the current one.
fn template_name() -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};

    let mut hasher = DefaultHasher::new();
    for migrator in [daybook_event_store::migrator(), daybook_read_model::migrator()] {
        for migration in migrator.iter() {
            migration.checksum.hash(&mut hasher);
        }
    }
    format!("daybook_template_{:016x}", hasher.finish())
}

fn folded<M: ReadModel>(log: &[RecordedEvent]) -> HashMap<M::Key, M::Row> {
    let mut rows: HashMap<M::Key, M::Row> = HashMap::new();
    let known = log
        .iter()
        .filter(|recorded| Event::known_category(recorded).is_some());
    for recorded in known {
        let event = Event::decode(recorded).expect("a valid event");
        for key in M::keys(&event) {
            if let Some(row) = M::fold(&key, rows.get(&key), &event).expect("a valid history") {
                rows.insert(key, row);
            }
        }
    }
    rows
}

/// Takes the lease on the live tables of a read model.
pub(crate) async fn claim<M: ReadModel>(process: &Context) -> (PgConnection, Claim) {
    let owner = process.duties.borrow().owner;
    let connected = process.connector.connect("test").await;
    let mut connection = connected.expect("a connection");
    let patient = sqlx::query("SET idle_in_transaction_session_timeout = 0");
    patient.execute(&mut connection).await.expect("a setting");
    let claimed = checkpoint::claim_live(&mut connection, M::NAME, 0, owner).await;
    (connection, claimed.expect("an answer"))
}

/// Takes the lease on the live tables of a read model, which is to be had.
pub(crate) async fn hold<M: ReadModel>(process: &Context) -> (PgConnection, Lease) {
    match claim::<M>(process).await {
        (connection, Claim::Held(lease)) => (connection, lease),
        (_, refused) => panic!("{refused:?}"),
    }
}

/// Steps until there is nothing to do; an error is a failure of the test.
pub(crate) async fn drain<M: ReadModel>(worker: &mut Worker<M>) -> Step {
    loop {
        match worker.step().await.expect("a step") {
            Step::Progressed => {}
            idle => return idle,
        }
    }
}

/// Waits until something is true.
pub(crate) async fn eventually(what: &str, mut is_true: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_true().await {
        assert!(Instant::now() < deadline, "{what} did not come true");
        tokio::task::yield_now().await;
    }
}
