//! The private listener: `/livez`, `/readyz` and `/metrics`. Operators and machines use it, callers never reach it.
//!
//! It outlives the stop signal, so that a process that is draining says "not ready" instead of nothing.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use http::header::CONTENT_TYPE;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::error::{ApiError, Code};
use crate::metrics::{Registry, ServerMetrics};
use crate::server::{self, Access, Cors, Declared, Limits, Needs, Routes};
use crate::shutdown::Stop;

/// How often a dependency is looked at.
pub(crate) const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How long a dependency may take to answer.
pub(crate) const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// The content type of the OpenMetrics text format.
const OPENMETRICS_TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether the process can do its work, dependency by dependency. Cheap to clone.
///
/// Each dependency has to say "ready" once before the process is ready, and the process is not ready any more as soon
/// as its stop signal is given.
#[derive(Clone, Debug)]
pub(crate) struct Readiness {
    dependencies: Arc<Mutex<Vec<(&'static str, Status)>>>,
    stop: Stop,
}

/// The state of one dependency: what is wrong with it, if anything.
type Status = Result<(), String>;

/// One dependency, for the task that looks at it.
struct Dependency {
    name: &'static str,
    index: usize,
    dependencies: Arc<Mutex<Vec<(&'static str, Status)>>>,
}

impl Readiness {
    /// A process that depends on nothing yet.
    pub(crate) fn new(stop: Stop) -> Self {
        Self {
            dependencies: Arc::default(),
            stop,
        }
    }

    /// Adds a dependency, which is not ready until it is said to be.
    fn depend_on(&self, name: &'static str) -> Dependency {
        let mut dependencies = self.dependencies.lock().unwrap_or_else(PoisonError::into_inner);
        dependencies.push((name, Err("not checked yet".to_owned())));
        let index = dependencies.len() - 1;
        Dependency {
            name,
            index,
            dependencies: Arc::clone(&self.dependencies),
        }
    }

    /// Adds a dependency that is looked at every second until the process drains. Run what it returns as a task.
    pub(crate) fn watch<C, F, E>(
        &self,
        name: &'static str,
        check: C,
    ) -> impl Future<Output = anyhow::Result<()>> + Send + use<C, F, E>
    where
        C: Fn() -> F + Send + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display + Send + 'static,
    {
        let dependency = self.depend_on(name);
        let drains = self.stop.drains.clone();
        async move {
            let watched = dependency.look_for_ever(check);
            drains.run_until_cancelled_owned(watched).await;
            Ok(())
        }
    }

    /// Whether everything is ready and the process is not stopping.
    fn is_ready(&self) -> bool {
        let dependencies = self.dependencies.lock().unwrap_or_else(PoisonError::into_inner);
        !self.stop.asked.is_cancelled() && dependencies.iter().all(|(_, status)| status.is_ok())
    }

    /// Each dependency with "ready" or what is wrong with it.
    fn dependencies(&self) -> Value {
        let dependencies = self.dependencies.lock().unwrap_or_else(PoisonError::into_inner);
        let named = dependencies.iter().map(|(name, status)| {
            let text = status.as_ref().map_or_else(String::as_str, |()| "ready");
            ((*name).to_owned(), Value::from(text))
        });
        Value::Object(named.collect::<Map<_, _>>())
    }
}

impl Dependency {
    /// It works.
    fn set_ready(&self) {
        self.set(Ok(()));
    }

    /// It does not; `why` is for operators.
    fn set_failed(&self, why: impl Into<String>) {
        self.set(Err(why.into()));
    }

    /// Changes are logged, once each; this is where an outage is noticed.
    fn set(&self, status: Status) {
        let mut dependencies = self.dependencies.lock().unwrap_or_else(PoisonError::into_inner);
        let before = &mut dependencies[self.index].1;
        match (&*before, &status) {
            (Err(_), Ok(())) => tracing::info!(dependency.name = self.name, "dependency is ready"),
            (Ok(()), Err(why)) => tracing::warn!(dependency.name = self.name, why, "dependency is not ready"),
            (Ok(()), Ok(())) | (Err(_), Err(_)) => {}
        }
        *before = status;
    }

    /// Looks at once, then every second. A check that hangs is a failure; it is never dropped half-way, as it may hold a
    /// database connection, but left to end by itself.
    async fn look_for_ever<C, F, E>(self, check: C)
    where
        C: Fn() -> F,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display + Send + 'static,
    {
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut checking = tokio::spawn(check());
            let checked = match timeout(CHECK_TIMEOUT, &mut checking).await {
                Ok(checked) => checked,
                Err(_elapsed) => {
                    self.set_failed("it does not answer in time");
                    checking.await
                }
            };
            match checked {
                Ok(Ok(())) => self.set_ready(),
                Ok(Err(error)) => self.set_failed(error.to_string()),
                Err(panicked) => self.set_failed(panicked.to_string()),
            }
        }
    }
}

#[derive(Clone)]
struct Admin {
    readiness: Readiness,
    registry: Registry,
}

/// The routes of the private listener.
pub(crate) fn router(readiness: Readiness, registry: Registry) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Admin { readiness, registry })
}

/// Serves the private listener until the future is dropped: it answers probes while the process drains. Spawn it.
pub(crate) async fn serve(listener: TcpListener, limits: Limits, readiness: Readiness, registry: Registry) {
    let probes = ["/livez", "/readyz"].map(|route| (route, Needs::probe()));
    // Its own requests are nobody's measure, so its metrics are not in the registry that it shows.
    let own_metrics = ServerMetrics::new(&Registry::new());
    let never = CancellationToken::new();
    server::serve(
        listener,
        Routes {
            http: Declared::new(router(readiness, registry), probes),
            grpc: Declared::default(),
            access: Access::Anybody,
            cors: Cors::default(),
        },
        limits,
        own_metrics,
        never,
    )
    .await;
}

/// 200, or a problem with 503; each dependency is named in both.
async fn readyz(State(admin): State<Admin>) -> Result<Json<Value>, ApiError> {
    let Admin { readiness, .. } = admin;
    let refusal = if readiness.stop.asked.is_cancelled() {
        ApiError::shutting_down()
    } else if !readiness.is_ready() {
        ApiError::new(Code::DependencyUnavailable, "a dependency is not ready")
    } else {
        return Ok(Json(json!({ "dependencies": readiness.dependencies() })));
    };
    Err(refusal.with_detail("dependencies", readiness.dependencies()))
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    ([(CONTENT_TYPE, OPENMETRICS_TEXT)], admin.registry.encode())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::{Request, StatusCode};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    fn stop() -> Stop {
        Stop::after(CancellationToken::new(), Duration::ZERO)
    }

    async fn get(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).expect("a valid request");
        let Ok(response) = router.clone().oneshot(request).await;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .expect("a whole body")
            .to_bytes();
        (status, String::from_utf8(body.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn a_process_is_ready_when_all_that_it_depends_on_is_and_never_while_it_stops() {
        let stop = stop();
        let readiness = Readiness::new(stop.clone());
        let (database, bus) = (readiness.depend_on("database"), readiness.depend_on("bus"));
        let router = router(readiness, Registry::new());
        database.set_ready();
        let (status, body) = get(&router, "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(
            body.contains(r#""database":"ready""#) && body.contains(r#""bus":"not checked yet""#),
            "{body}"
        );
        bus.set_ready();
        assert_eq!(get(&router, "/readyz").await.0, StatusCode::OK);
        database.set_failed("connection refused");
        assert!(get(&router, "/readyz").await.1.contains("connection refused"));
        database.set_ready();
        stop.asked.cancel();
        assert_eq!(get(&router, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(get(&router, "/livez").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn a_dependency_is_watched_until_the_process_drains() {
        let stop = stop();
        let readiness = Readiness::new(stop.clone());
        let (seen, mut checks) = tokio::sync::mpsc::channel(8);
        let watching = tokio::spawn(readiness.watch("database", move || {
            let sent = seen.try_send(());
            async move { sent.map_err(|_| "nobody listens") }
        }));
        checks.recv().await.expect("a first check");
        checks.recv().await.expect("and a second");
        assert!(readiness.is_ready());
        stop.drains.cancel();
        watching.await.expect("no panic").expect("a clean end");
    }

    #[tokio::test]
    async fn the_metrics_are_openmetrics_text() {
        let registry = Registry::new();
        let _metrics = ServerMetrics::new(&registry);
        let router = router(Readiness::new(stop()), registry);
        let (status, body) = get(&router, "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(
            body.contains("# TYPE daybook_connections gauge") && body.ends_with("# EOF\n"),
            "{body}"
        );
    }
}
