//! Operations that take longer than a request: imports and exports.
//!
//! | module | what it is for |
//! |---|---|
//! | `upload` | `POST /v1/imports`: an input of any length goes into the database, in bounded memory, before it is answered |
//! | `input` | how it is cut into chunks |
//! | `worker` | claims operations, and has tenants take turns |
//! | `lease` | the right to work on one, and the record of progress |
//! | `lines`, `tally` | does what an import asks for, and goes on where another process stopped |
//! | `exports` | what a tenant's log holds, as a file |
//! | `import` | what a line asks for, and the path that it takes |
//! | `http`, `document` | how an operation stands, over HTTP; what went wrong, as JSON and as CSV |
//! | `store` | the tables, as requests need them |

mod csv;
mod description;
mod document;
mod exports;
mod http;
mod import;
mod input;
mod lease;
mod lines;
mod store;
mod tally;
mod turn;
mod upload;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use daybook_service::database;
use daybook_service::identity::Principal;
use daybook_service::sealing::KeyRing;
use daybook_service::server::{Declared, Needs};
use daybook_service::shares::{Shares, SharesOptions};
use daybook_service::start::Start;
use tokio::sync::Notify;
use utoipa_axum::router::OpenApiRouter;

pub(crate) use self::description::description;
use self::description::{reads, uploads};
pub(crate) use self::import::{Import, Importable, Imported, Line};
use self::lease::Claims;
use self::store::Store;
use self::upload::IMPORT_BYTES_MAX;
use self::worker::Worker;
use crate::config::Config;

/// How long an operation is kept after it has ended.
pub(crate) const RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// After how long an input that is not complete is deleted: whoever received it is gone.
const ARRIVING_MAX: Duration = Duration::from_secs(2 * 60 * 60);

/// How many operations of one tenant may wait or run.
const OPEN_MAX: i32 = 8;

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
    ("operations_open", store::OPEN),
    ("operations", store::OPERATIONS),
    ("operation_errors", store::ERRORS),
    ("cancel_operation", store::CANCEL),
    ("read_operation_input", store::INPUT),
    ("sweep_operations", store::SWEEP),
    ("claim_operation", lease::CLAIM),
    ("read_operation_progress", lease::PROGRESS),
    ("record_operation_progress", lease::RECORD),
    ("yield_operation", lease::YIELD),
    ("end_operation", lease::END),
    ("submit_export", exports::store::SUBMIT),
    ("exports", exports::store::EXPORTS),
    ("export_bytes", exports::store::BYTES),
    ("record_output", exports::store::RECORD),
    ("read_output", exports::store::OUTPUT),
    ("discard_output", exports::store::DISCARD),
    ("end_export", exports::store::END),
    ("sweep_outputs", exports::store::SWEEP),
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
    /// How many bytes the inputs of all tenants may take.
    bytes_max: u64,
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
        let kinds = kinds.chain([(exports::KIND, exports::SCOPE)]);
        let allowed = kinds.filter(|(_, scope)| principal.scopes.contains(*scope));
        allowed.map(|(kind, _)| kind.to_owned()).collect()
    }
}

/// Begins to work on operations; gives the routes of callers who ask for some.
///
/// # Errors
/// When the database cannot be used.
pub(crate) async fn start(
    config: &Config,
    importers: Importers,
    sealing: KeyRing,
    start: &mut Start,
) -> anyhow::Result<Declared> {
    let url = &config.common.database_url;
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
        bytes_max: config.import_bytes_max,
        submitted: Arc::default(),
    };
    let worker = Worker {
        store: operations.store.clone(),
        exports: operations.exports.clone(),
        claims: Claims::new(sessions, kinds),
        importers,
        authenticator: start.authenticator(),
        submitted: Arc::clone(&operations.submitted),
        shutdown: start.shutdown.clone(),
    };
    start.tasks.spawn("operations", worker.run());
    let sweep = worker::sweep(operations.store.clone(), operations.exports.clone());
    start.tasks.spawn_companion("sweep of operations", sweep);
    Ok(routes(&operations))
}

/// Whoever may import something or export events is let in; which operations that is good for the handlers ask.
fn routes(operations: &Operations) -> Declared {
    let importers = operations.importers.iter().map(|importer| importer.scope());
    let imports = Needs::any_of(importers.clone().collect());
    let any_kind = Needs::any_of(importers.chain([exports::SCOPE]).collect());
    let declared = |routes: OpenApiRouter<Operations>, needs: Needs| {
        let (router, api) = routes.split_for_parts();
        let paths = api.paths.paths.into_keys().map(|path| (path, needs));
        Declared::new(router.with_state(operations.clone()), paths)
    };
    declared(uploads(), imports.uploading(IMPORT_BYTES_MAX))
        .merge(declared(reads(), any_kind))
        .merge(declared(exports::routes(), Needs::scope(exports::SCOPE)))
}
