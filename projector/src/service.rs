//! `daybook.projections.v1.ProjectionService`: what operators ask of projections.

use std::sync::Arc;

use daybook_event_bus::Bus;
use daybook_event_bus::signal;
use daybook_postgres::{LOOKUP_TIMEOUT, QUERY_TIMEOUT};
use daybook_proto::convert::to_timestamp;
use daybook_proto::projections::v1::projection_service_server::ProjectionService;
use daybook_proto::projections::v1::{
    GetProjectionRequest, GetProjectionResponse, GetRebuildRequest, GetRebuildResponse,
    ListProjectionsRequest, ListProjectionsResponse, Projection, ProjectionStatus, Rebuild,
    RebuildProjectionRequest, RebuildProjectionResponse, RebuildStatus,
};
use daybook_service::ApiError;
use daybook_service::database::bounded_for_request;
use daybook_service::identity::{Operator, Scope, operator_with};
use sqlx::PgPool;
use time::format_description::well_known::Rfc3339;
use tonic::{Request, Response, Status};

use crate::checkpoint::{self, Live};
use crate::registry::{self, Progress, StartError};

/// The longest reason for a rebuild, in bytes.
const REASON_BYTES_MAX: usize = 512;

/// Answers operators.
#[derive(Debug, Clone)]
pub(crate) struct Projections {
    pool: PgPool,
    bus: Bus,
}

impl Projections {
    /// Reads and writes through `pool`; the replicas are notified of rebuilds over the bus.
    pub(crate) fn new(pool: PgPool, bus: Bus) -> Self {
        Self { pool, bus }
    }

    async fn live(&self, name: Option<String>) -> Result<Vec<Projection>, ApiError> {
        let live: Result<_, ApiError> = bounded_for_request(&self.pool, LOOKUP_TIMEOUT, |connection| {
            Box::pin(async move { Ok(checkpoint::live(connection, name.as_deref()).await?) })
        })
        .await;
        Ok(live?.into_iter().map(projection).collect())
    }

    async fn progress(&self, name: String, generation: i32) -> Result<Option<Rebuild>, ApiError> {
        let progress: Result<_, ApiError> =
            bounded_for_request(&self.pool, LOOKUP_TIMEOUT, move |connection| {
                Box::pin(async move { Ok(registry::progress(connection, &name, generation).await?) })
            })
            .await;
        Ok(progress?.map(rebuild))
    }

    /// Starts a rebuild and returns its generation.
    async fn start(&self, name: String, reason: String, requested_by: String) -> Result<i32, ApiError> {
        // It makes tables.
        let started = bounded_for_request(&self.pool, QUERY_TIMEOUT, |connection| {
            Box::pin(async move {
                let started = registry::start_rebuild(connection, &name, &reason, &requested_by).await;
                started.map_err(|error| start_error(error, name))
            })
        });
        Ok(started.await?.get())
    }
}

/// The operator who sent a request, if projections are its business.
fn operator<T>(request: &Request<T>) -> Result<Arc<Operator>, ApiError> {
    operator_with(request.extensions(), Scope::ProjectionsOperate)
}

fn start_error(error: StartError, name: String) -> ApiError {
    match error {
        StartError::Unknown => ApiError::not_found("projection", name),
        StartError::Running => ApiError::operation_running("rebuild", name),
        StartError::Database(source) => source.into(),
    }
}

#[tonic::async_trait]
impl ProjectionService for Projections {
    async fn list_projections(
        &self,
        request: Request<ListProjectionsRequest>,
    ) -> Result<Response<ListProjectionsResponse>, Status> {
        operator(&request)?;
        let projections = self.live(None).await?;
        Ok(Response::new(ListProjectionsResponse { projections }))
    }

    async fn get_projection(
        &self,
        request: Request<GetProjectionRequest>,
    ) -> Result<Response<GetProjectionResponse>, Status> {
        operator(&request)?;
        let name = named(request.into_inner().name)?;
        let projections = self.live(Some(name.clone())).await?;
        if projections.is_empty() {
            return Err(ApiError::not_found("projection", name).into());
        }
        Ok(Response::new(GetProjectionResponse { projections }))
    }

    async fn rebuild_projection(
        &self,
        request: Request<RebuildProjectionRequest>,
    ) -> Result<Response<RebuildProjectionResponse>, Status> {
        let operator = operator(&request)?;
        let RebuildProjectionRequest { name, reason } = request.into_inner();
        let (name, reason) = (named(name)?, valid_reason(reason)?);
        let generation = self.start(name.clone(), reason, operator.credential()).await?;
        signal::announce_freed(&self.bus).await;
        let rebuild = self.progress(name, generation).await?;
        Ok(Response::new(RebuildProjectionResponse { rebuild }))
    }

    async fn get_rebuild(
        &self,
        request: Request<GetRebuildRequest>,
    ) -> Result<Response<GetRebuildResponse>, Status> {
        operator(&request)?;
        let GetRebuildRequest { name, generation } = request.into_inner();
        let name = named(name)?;
        let missing = || ApiError::not_found("rebuild", format!("{name}/{generation}"));
        let number = i32::try_from(generation).map_err(|_| missing())?;
        let rebuild = self.progress(name.clone(), number).await?.ok_or_else(missing)?;
        Ok(Response::new(GetRebuildResponse {
            rebuild: Some(rebuild),
        }))
    }
}

fn named(name: String) -> Result<String, ApiError> {
    if name.is_empty() {
        return Err(ApiError::invalid_field(
            "/name",
            "REQUIRED",
            "the name of a projection is needed",
        ));
    }
    // No projection has such a name, and Postgres cannot be asked for it.
    if name.contains('\0') {
        return Err(ApiError::invalid_field(
            "/name",
            "INVALID",
            "a name has no null characters",
        ));
    }
    Ok(name)
}

fn valid_reason(reason: String) -> Result<String, ApiError> {
    if reason.trim().is_empty() {
        return Err(ApiError::invalid_field(
            "/reason",
            "REQUIRED",
            "a reason is needed, for the record",
        ));
    }
    if reason.len() > REASON_BYTES_MAX {
        let message = format!("a reason has at most {REASON_BYTES_MAX} bytes");
        return Err(ApiError::invalid_field("/reason", "TOO_LONG", message));
    }
    if reason.contains('\0') {
        return Err(ApiError::invalid_field(
            "/reason",
            "INVALID",
            "a reason has no null characters",
        ));
    }
    Ok(reason)
}

fn projection(live: Live) -> Projection {
    Projection {
        status: status(&live).into(),
        error: failure(&live),
        partition: live.partition.cast_unsigned(),
        live_generation: live.live_generation.cast_unsigned(),
        position: live.position,
        head: live.head,
        lag_ms: live.lag_ms.unwrap_or(0).cast_unsigned(),
        name: live.name,
    }
}

fn status(live: &Live) -> ProjectionStatus {
    if live.error.is_some() {
        ProjectionStatus::Failed
    } else if live.is_rebuilding {
        ProjectionStatus::Rebuilding
    } else {
        ProjectionStatus::Running
    }
}

/// Why the projection failed, and since when; empty when it did not.
fn failure(live: &Live) -> String {
    match (&live.error, live.failed_at) {
        (Some(error), Some(failed_at)) => {
            let since = failed_at
                .format(&Rfc3339)
                .unwrap_or_else(|_| failed_at.to_string());
            format!("{error} (since {since})")
        }
        _ => String::new(),
    }
}

fn rebuild(progress: Progress) -> Rebuild {
    let status = match progress.status.as_str() {
        "running" => RebuildStatus::Running,
        "done" => RebuildStatus::Done,
        _ => RebuildStatus::Failed,
    };
    Rebuild {
        projection: progress.projection,
        generation: progress.generation.cast_unsigned(),
        status: status.into(),
        position: progress.position,
        head: progress.head,
        events_per_second: progress.position as f64 / progress.seconds.max(0.001),
        started_at: Some(to_timestamp(progress.started_at)),
        ended_at: progress.ended_at.map(to_timestamp),
        error: progress.error.unwrap_or_default(),
    }
}
