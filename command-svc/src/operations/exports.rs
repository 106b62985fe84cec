//! Exports: operations that write a tenant's events into a file, which stays until the operation is deleted.
//!
//! | module | what it is for |
//! |---|---|
//! | `http` | `POST /v1/event-exports`, and the file |
//! | `request` | what is asked for: a format, and the filters of the event feed |
//! | `worker` | reads the log page by page, and goes on where another process stopped |
//! | `content` | an event as a line of the file |
//! | `document` | what an operation says of its export: how far it is, and the manifest |
//! | `store` | the tables |

mod content;
mod description;
mod document;
mod http;
mod request;
pub(super) mod store;
mod worker;

pub(super) use self::description::routes;
pub(super) use self::document::{ExportDocument, Manifest};
pub(super) use self::store::Store;
pub(super) use self::worker::work_and_report;

use daybook_service::identity::Scope;

/// What operations of this kind are called.
pub(super) const KIND: &str = "event-exports";

/// What a key needs for them.
pub(super) const SCOPE: Scope = Scope::EventsRead;

/// The largest file, in bytes. Whoever wants more exports it in parts, by time.
const EXPORT_BYTES_MAX: u64 = 4 << 30;

/// How many bytes of files a tenant has at the most, the one that is being written included.
const TENANT_BYTES_MAX: u64 = 16 << 30;
