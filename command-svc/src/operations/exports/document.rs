//! What an operation says of its export: what it is of, how far it is, and, once the file is whole, its manifest.

use daybook_service::error::ApiError;
use daybook_service::identity::Principal;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::KIND;
use super::request::{Asked, Filters, Format};
use super::store::{Export, Written};
use crate::operations::Operations;
use crate::operations::document::{OperationDocument, OperationProgress, OperationState, estimate};
use crate::operations::store::Row;

/// What is exported, and how much of the log was read for it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventExport)]
pub(crate) struct ExportDocument {
    /// What the file looks like.
    format: Format,
    /// Which events are in it.
    filters: Filters,
    /// How many positions of the log were read; it is recorded about twice a second.
    positions_done: i64,
    /// How many there are to read: those up to the newest one when the export was taken, within the time that was asked for.
    positions_total: i64,
}

/// What a file is, once it is whole.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventExportManifest)]
pub(crate) struct Manifest {
    /// What it looks like.
    format: Format,
    /// Which events are in it.
    filters: Filters,
    /// The number of the log's epoch that it is of, greater after every fork of the log's history.
    epoch: i32,
    /// All that was recorded up to this position of the log is in it, as far as it passes the filters.
    up_to_position: i64,
    /// How many events it has.
    events: i64,
    /// The position of its first event.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    first_position: Option<i64>,
    /// The position of its last event.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    last_position: Option<i64>,
    /// How many bytes it has.
    bytes: i64,
    /// The SHA-256 of all of them, in hexadecimal digits.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    sha256: String,
}

impl Export {
    /// What is exported, and its manifest where the file is whole.
    ///
    /// # Errors
    /// When a later version of this program wrote what this one does not know.
    fn documents(&self) -> Result<(ExportDocument, Option<Manifest>), serde_json::Error> {
        let Asked { format, filters } = self.asked()?;
        let export = ExportDocument {
            format,
            filters: filters.clone(),
            positions_done: self.up_to - self.after_position,
            positions_total: self.up_to_position - self.after_position,
        };
        let manifest = self.sha256.as_ref().map(|sha256| Manifest {
            format,
            filters,
            epoch: self.epoch.number,
            up_to_position: self.up_to_position,
            events: self.written.events,
            first_position: self.written.first_position,
            last_position: self.written.last_position,
            bytes: self.written.bytes,
            sha256: hex::encode(sha256),
        });
        Ok((export, manifest))
    }
}

impl OperationDocument {
    /// Adds what is known of an export.
    fn with_export(mut self, of: &Export) -> Result<Self, serde_json::Error> {
        let (export, manifest) = of.documents()?;
        let Written { events, bytes, .. } = of.written;
        self.progress = OperationProgress {
            lines_read: events,
            lines_total: events,
            succeeded: events,
            failed: 0,
            bytes_done: bytes,
            bytes_total: bytes,
        };
        if self.state == OperationState::Running {
            let positions = (export.positions_done, export.positions_total);
            let moments = self.started_at.zip(of.recorded_at);
            self.estimated_completion = moments.and_then(|moments| estimate(moments, positions));
        }
        self.error = of.problem.as_deref().map(serde_json::from_str).transpose()?;
        self.export = Some(export);
        self.manifest = manifest;
        Ok(self)
    }
}

impl Operations {
    /// An operation as it is shown.
    pub(in crate::operations) async fn document(
        &self,
        principal: &Principal,
        row: Row,
    ) -> Result<OperationDocument, ApiError> {
        let mut documents = self.documents(principal, vec![row]).await?;
        Ok(documents.pop().expect("each operation has its document"))
    }

    /// Operations as they are shown.
    pub(in crate::operations) async fn documents(
        &self,
        principal: &Principal,
        rows: Vec<Row>,
    ) -> Result<Vec<OperationDocument>, ApiError> {
        let exports = rows.iter().filter(|row| row.kind == KIND);
        let exports: Vec<Uuid> = exports.map(|row| row.operation_id).collect();
        let exports = match exports.is_empty() {
            true => Vec::new(),
            false => self.exports.exports(principal.tenant_id, exports).await?,
        };
        let document = |row: Row| {
            let export = exports
                .iter()
                .find(|export| export.operation_id == row.operation_id);
            let document = OperationDocument::from(row);
            match export {
                Some(export) => document.with_export(export).map_err(ApiError::internal),
                None => Ok(document),
            }
        };
        rows.into_iter().map(document).collect()
    }
}
