//! Operations that take longer than a request: imports and exports.
//!
//! | module | what it is for |
//! |---|---|
//! | `upload` | `POST /v1/imports`: an input of any length goes into the database, in bounded memory, before it is answered |
//! | `input` | how it is cut into chunks |
//! | `worker` | does what it asks for, a process at a time, and goes on where another one stopped |
//! | `lease` | the right to do so, and the record of progress |
//! | `exports` | what a tenant's log holds, as a file |
//! | `import` | what a line asks for, and the path that it takes |
//! | `http` | how an operation stands, over HTTP; what went wrong, as JSON and as CSV |
//! | `store` | the tables, as requests need them |

mod csv;
mod description;
pub mod exports;
mod http;
mod import;
mod input;
mod lease;
mod store;
mod turn;
mod upload;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use daybook_service::config::Secret;
use daybook_service::database;
use daybook_service::identity::{Principal, Scope};
use daybook_service::sealing::KeyRing;
use daybook_service::server::{Declared, Needs};
use daybook_service::shares::{Shares, SharesOptions};
use daybook_service::start::Start;
use tokio::sync::Notify;

pub(crate) use self::description::add_to;
pub(crate) use self::import::{Import, Imported, Line};
use self::lease::Claims;
use self::store::Store;
use self::upload::IMPORT_BYTES_MAX;
use self::worker::Worker;

/// How long an operation is kept after it has ended.
pub(crate) const RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// After how long an input that is not complete is deleted: whoever received it is gone.
const ARRIVING_MAX: Duration = Duration::from_secs(2 * 60 * 60);

/// How many operations of one tenant may wait or run.
const OPEN_MAX: i64 = 8;

/// How many errors of an operation are kept; all are counted.
pub(crate) const ERRORS_MAX: u64 = 10_000;

/// How many inputs one process receives at once.
const UPLOADS_MAX: usize = 16;

/// Connections for uploads, for what callers ask, and for the input of what is worked on.
const CONNECTIONS: u32 = 6;

/// Every SQL statement of operations, by name, for the test that prepares each against the migrated schema.
pub const STATEMENTS: &[(&str, &str)] = &[
    ("begin_operation", store::BEGIN),
    ("add_operation_input", store::ADD_INPUT),
    ("submit_operation", store::SUBMIT),
    ("discard_operation_input", store::DISCARD_INPUT),
    ("open_operations", store::OPEN),
    ("operations", store::OPERATIONS),
    ("operation_errors", store::ERRORS),
    ("cancel_operation", store::CANCEL),
    ("read_operation_input", store::INPUT),
    ("sweep_operations", store::SWEEP),
    ("claim_operation", lease::CLAIM),
    ("read_operation_progress", lease::PROGRESS),
    ("record_operation_progress", lease::RECORD),
    ("end_operation", lease::END),
];

/// What imports lines, one for each kind.
pub(crate) type Importers = Arc<[Arc<dyn Import>]>;

/// What answers requests about operations. Cheap to clone.
#[derive(Clone)]
struct Operations {
    store: Store,
    exports: exports::Store,
    importers: Importers,
    sealing: KeyRing,
    uploads: Shares,
    submitted: Arc<Notify>,
}

impl Operations {
    fn importer(&self, kind: &str) -> Option<&Arc<dyn Import>> {
        self.importers.iter().find(|importer| importer.kind() == kind)
    }

    /// The kinds whose operations a caller may see.
    fn kinds(&self, principal: &Principal) -> Vec<String> {
        let importers = self.importers.iter();
        let kinds = importers.map(|importer| (importer.kind(), importer.scope()));
        let kinds = kinds.chain([(exports::KIND, Scope::EventsRead)]);
        let allowed = kinds.filter(|(_, scope)| principal.scopes.contains(*scope));
        allowed.map(|(kind, _)| kind.to_owned()).collect()
    }
}

/// Begins to work on operations; gives the routes of callers who ask for some.
///
/// # Errors
/// When the database cannot be used.
pub(crate) async fn start(
    url: &Secret,
    importers: Importers,
    sealing: KeyRing,
    start: &mut Start,
) -> anyhow::Result<Declared> {
    let pool = database::connect(url, "daybook-operations", CONNECTIONS).await?;
    let sessions = database::connect_options(url, "daybook-operation", database::STATEMENT_TIMEOUT)?;
    let kinds = importers.iter().map(|importer| importer.kind());
    let kinds = kinds.chain([exports::KIND]).map(str::to_owned).collect();
    let operations = Operations {
        store: Store::new(pool.clone()),
        exports: exports::Store::new(pool),
        importers: Arc::clone(&importers),
        sealing,
        uploads: Shares::new(SharesOptions {
            quota: "imports that arrive",
            places: UPLOADS_MAX,
            waiting_max: 0,
            wait_max: Duration::ZERO,
        }),
        submitted: Arc::default(),
    };
    let worker = Worker {
        store: operations.store.clone(),
        exports: operations.exports.clone(),
        claims: Claims::new(sessions, kinds),
        importers,
        submitted: Arc::clone(&operations.submitted),
        shutdown: start.shutdown.clone(),
    };
    start.tasks.spawn("operations", worker.run());
    Ok(routes(operations))
}

fn routes(operations: Operations) -> Declared {
    let imports = Needs::any(&[Scope::OrdersWrite, Scope::StockWrite]);
    let exports = Needs::scope(Scope::EventsRead);
    let needs = Needs::any(&[Scope::OrdersWrite, Scope::StockWrite, Scope::EventsRead]);
    let router = Router::new()
        .route("/v1/imports", post(upload::upload))
        .route("/v1/event-exports", post(exports::begin))
        .route("/v1/operations", get(http::list))
        .route("/v1/operations/{operation_id}", get(http::show))
        .route("/v1/operations/{operation_id}/cancel", post(http::cancel))
        .route("/v1/operations/{operation_id}/errors", get(http::errors))
        .route("/v1/operations/{operation_id}/output", get(exports::output))
        .with_state(operations);
    let declared = [
        ("/v1/imports", imports.uploading(IMPORT_BYTES_MAX)),
        ("/v1/event-exports", exports),
        ("/v1/operations", needs),
        ("/v1/operations/{operation_id}", needs),
        ("/v1/operations/{operation_id}/cancel", needs),
        ("/v1/operations/{operation_id}/errors", needs),
        ("/v1/operations/{operation_id}/output", exports),
    ];
    Declared::new(router, declared)
}
