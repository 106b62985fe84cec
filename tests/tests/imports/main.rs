//! Many commands at once: batches in one request, and imports that outlive theirs.

mod batches;
mod imports;
mod limits;
mod operation;
mod workers;
