//! `daybook doctor`: is everything up, may we use it, and do the read models keep up with the log?
//!
//! One line for each check, with what to do about it when it is not well. A check that cannot be made because an earlier
//! one failed is left out: the first wrong thing of each service is the one to mend.

use std::time::{Duration, Instant};

use clap::Args;
use daybook_client::{Connection, Refusal};
use daybook_domain::ids::OrderId;
use daybook_proto::history::v1::ListStreamEventsRequest;
use daybook_proto::history::v1::history_service_client::HistoryServiceClient;
use daybook_proto::history::v1::history_service_server::SERVICE_NAME as HISTORY;
use daybook_proto::orders::v1::order_query_service_client::OrderQueryServiceClient;
use daybook_proto::orders::v1::order_query_service_server::SERVICE_NAME as ORDER_QUERIES;
use daybook_proto::orders::v1::order_service_client::OrderServiceClient;
use daybook_proto::orders::v1::order_service_server::SERVICE_NAME as ORDER_COMMANDS;
use daybook_proto::orders::v1::{ListOrdersRequest, PlaceOrderRequest};
use daybook_proto::projections::v1::projection_service_client::ProjectionServiceClient;
use daybook_proto::projections::v1::projection_service_server::SERVICE_NAME as PROJECTIONS;
use daybook_proto::projections::v1::{Projection, ProjectionStatus};
use serde::Serialize;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use uuid::Uuid;

use crate::client::{self, Authorized, Service};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Color, Format, count, paint, print, print_json};
use crate::projections::{self, lag_events, lag_time};
use crate::settings::{Role, Settings};

/// From which lag on a projection is worth a look, when it makes progress.
const LAG_MAX_MS: u64 = 5_000;

/// How long a projection that is behind is watched for progress.
const PROGRESS_WAIT: Duration = Duration::from_secs(2);

/// Checks every service: that it is reached, serves, takes the key, and that the projections keep up.
///
/// Exits with 1 when anything is wrong. Warnings do not count.
#[derive(Args)]
pub(crate) struct Arguments {
    /// What the output looks like.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

impl Verdict {
    fn painted(self) -> String {
        match self {
            Self::Ok => paint("ok  ", Color::Green),
            Self::Warn => paint("warn", Color::Yellow),
            Self::Fail => paint("fail", Color::Red),
        }
    }
}

/// The outcome of one check.
#[derive(Debug, Serialize)]
struct Check {
    verdict: Verdict,
    service: String,
    /// What was found.
    finding: String,
    /// What to do about it; nothing when it is well.
    #[serde(skip_serializing_if = "str::is_empty")]
    remedy: &'static str,
}

impl Check {
    fn ok(service: Service, finding: String) -> Self {
        Self::new(Verdict::Ok, service, finding, "")
    }

    fn new(verdict: Verdict, service: Service, finding: String, remedy: &'static str) -> Self {
        Self {
            verdict,
            service: service.to_string(),
            finding,
            remedy,
        }
    }

    fn line(&self) -> String {
        let first = format!(
            "{}  {:<9}  {}",
            self.verdict.painted(),
            self.service,
            self.finding
        );
        if self.remedy.is_empty() {
            first
        } else {
            format!("{first}\n                 {}", self.remedy)
        }
    }
}

/// Runs the verb.
pub(crate) async fn run(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let mut checks = Vec::new();
    examine_commands(settings, &mut checks).await;
    examine_queries(settings, &mut checks).await;
    examine_projector(settings, &mut checks).await;
    match arguments.output {
        Format::Json => print_json(&checks)?,
        Format::Text => {
            let lines: Vec<String> = checks.iter().map(Check::line).collect();
            print(&lines.join("\n"))?;
        }
    }
    if checks.iter().any(|check| check.verdict == Verdict::Fail) {
        return Err(Failure::Shown(Exit::Failed));
    }
    Ok(())
}

async fn examine_commands(settings: &Settings, checks: &mut Vec<Check>) {
    let service = Service::Command;
    let Some(connection) = examine_service(settings, service, &[ORDER_COMMANDS], checks).await else {
        return;
    };
    let Some(connection) = authorize(settings, service, Role::Service, &connection, checks) else {
        return;
    };
    // Authorisation comes before validation, and an empty request is never valid: nothing is recorded.
    let answer = OrderServiceClient::new(connection)
        .place_order(PlaceOrderRequest::default())
        .await;
    checks.push(access(
        service,
        "orders:write",
        answer.map(drop),
        Code::InvalidArgument,
    ));
}

async fn examine_queries(settings: &Settings, checks: &mut Vec<Check>) {
    let service = Service::Query;
    let Some(connection) = examine_service(settings, service, &[ORDER_QUERIES, HISTORY], checks).await else {
        return;
    };
    if let Some(connection) = authorize(settings, service, Role::Frontend, &connection, checks) {
        let request = ListOrdersRequest {
            page_size: 1,
            ..ListOrdersRequest::default()
        };
        let answer = OrderQueryServiceClient::new(connection)
            .list_orders(request)
            .await;
        let staleness = answer
            .as_ref()
            .ok()
            .and_then(|response| response.get_ref().staleness.clone());
        checks.push(access(service, "orders:read", answer.map(drop), Code::Ok));
        checks.extend(staleness.map(|staleness| freshness(staleness.lag_ms)));
    }
    if let Some(connection) = authorize(settings, service, Role::Auditor, &connection, checks) {
        let request = ListStreamEventsRequest {
            stream_id: OrderId::from_uuid(Uuid::now_v7()).to_string(),
            page_size: 1,
            ..ListStreamEventsRequest::default()
        };
        let answer = HistoryServiceClient::new(connection)
            .list_stream_events(request)
            .await;
        checks.push(access(service, "events:read", answer.map(drop), Code::NotFound));
    }
}

async fn examine_projector(settings: &Settings, checks: &mut Vec<Check>) {
    let service = Service::Projector;
    let Some(connection) = examine_service(settings, service, &[PROJECTIONS], checks).await else {
        return;
    };
    let Some(connection) = authorize(settings, service, Role::Operator, &connection, checks) else {
        return;
    };
    let mut client = ProjectionServiceClient::new(connection);
    let first = projections::list(&mut client).await;
    let projections = first.as_ref().map_or_else(|_| Vec::new(), Clone::clone);
    checks.push(access(service, "projections:operate", first.map(drop), Code::Ok));
    let later = watch(&mut client, &projections).await;
    checks.extend(
        projections
            .iter()
            .map(|projection| keeping_up(projection, &later)),
    );
}

/// Whether a service is reached and says that it serves. The connection, when it is worth going on.
async fn examine_service(
    settings: &Settings,
    service: Service,
    names: &[&str],
    checks: &mut Vec<Check>,
) -> Option<Connection> {
    let began = Instant::now();
    let connection = match client::open(settings, service).await {
        Ok(connection) => connection,
        Err(failure) => {
            checks.push(unreachable(service, &failure));
            return None;
        }
    };
    let connected_ms = began.elapsed().as_millis();
    let mut is_that_service = true;
    for name in names {
        let health = health(settings, connection.channel(), name).await;
        is_that_service &= health.is_ok();
        checks.push(serving(service, name, health, connected_ms));
    }
    is_that_service.then_some(connection)
}

fn unreachable(service: Service, failure: &Failure) -> Check {
    let remedy = match failure {
        Failure::Usage(_) => "set it, or run this where `cargo xtask up` was run",
        _ => "is it running? `cargo xtask status` tells for the development stack; else look at its log",
    };
    Check::new(Verdict::Fail, service, failure.with_causes(), remedy)
}

async fn health(settings: &Settings, channel: Channel, name: &str) -> Result<ServingStatus, Status> {
    let mut request = Request::new(HealthCheckRequest {
        service: name.to_owned(),
    });
    request.set_timeout(settings.timeout());
    let response = HealthClient::new(channel).check(request).await?;
    Ok(response.into_inner().status())
}

fn serving(service: Service, name: &str, health: Result<ServingStatus, Status>, connected_ms: u128) -> Check {
    const REMEDY: &str =
        "it is stopping, or something that it needs is away: /readyz on its private listener names it";
    match health {
        Ok(ServingStatus::Serving) => Check::ok(
            service,
            format!("{name} is serving, connected in {connected_ms} ms"),
        ),
        Ok(status) => {
            let status = status.as_str_name();
            Check::new(Verdict::Fail, service, format!("{name} is {status}"), REMEDY)
        }
        Err(status) => {
            let finding = format!("{name} does not tell its health: {}", one_line(status));
            Check::new(
                Verdict::Fail,
                service,
                finding,
                "is this the address of that service?",
            )
        }
    }
}

/// The connection with the key that suits the role, where there is one.
fn authorize(
    settings: &Settings,
    service: Service,
    role: Role,
    connection: &Connection,
    checks: &mut Vec<Check>,
) -> Option<Authorized> {
    match client::credential(settings, role) {
        Ok(credential) => Some(connection.with(credential)),
        Err(failure) => {
            checks.push(Check::new(
                Verdict::Warn,
                service,
                failure.to_string(),
                "access was not checked",
            ));
            None
        }
    }
}

/// What an answer says about the key. `harmless` is the refusal that the question was made for.
fn access(service: Service, scope: &str, answer: Result<(), Status>, harmless: Code) -> Check {
    let status = match answer {
        Ok(()) => return Check::ok(service, format!("the key has {scope}")),
        Err(status) if status.code() == harmless => {
            return Check::ok(service, format!("the key has {scope}"));
        }
        Err(status) => status,
    };
    match status.code() {
        Code::PermissionDenied => {
            let finding = format!("the key lacks {scope}");
            Check::new(
                Verdict::Warn,
                service,
                finding,
                "use a key with this scope where it is needed",
            )
        }
        Code::Unauthenticated => {
            let remedy = "it is unknown, expired or revoked, or of another database: get a new one";
            Check::new(
                Verdict::Fail,
                service,
                "the key is not accepted".to_owned(),
                remedy,
            )
        }
        _ => {
            let remedy = "look for the request id in its log; `daybook explain CODE` says more";
            Check::new(Verdict::Fail, service, one_line(status), remedy)
        }
    }
}

/// How old what readers see is.
fn freshness(lag_ms: u64) -> Check {
    let finding = format!("reads are {} behind the log", lag_time(lag_ms));
    if lag_ms <= LAG_MAX_MS {
        return Check::ok(Service::Query, finding);
    }
    Check::new(
        Verdict::Warn,
        Service::Query,
        finding,
        "the projector is behind or not running",
    )
}

/// The projections a moment later, when any of them is behind.
async fn watch(
    client: &mut ProjectionServiceClient<Authorized>,
    projections: &[Projection],
) -> Vec<Projection> {
    if projections.iter().all(|projection| lag_events(projection) == 0) {
        return Vec::new();
    }
    tokio::time::sleep(PROGRESS_WAIT).await;
    projections::list(client).await.unwrap_or_default()
}

/// Whether a projection follows the log. One that is behind has to be further a moment `later`: whether the bus holds it
/// up or the projector stands still, this is where it shows.
fn keeping_up(projection: &Projection, later: &[Projection]) -> Check {
    let subject = format!("{} (partition {})", projection.name, projection.partition);
    let check = |verdict, finding, remedy| Check::new(verdict, Service::Projector, finding, remedy);
    if projection.status() == ProjectionStatus::Failed {
        let finding = format!("{subject} has failed: {}", projection.error);
        return check(
            Verdict::Fail,
            finding,
            "mend the cause; it stands before the event and skips nothing",
        );
    }
    let newest = later
        .iter()
        .find(|other| is_same(projection, other))
        .unwrap_or(projection);
    let behind = count(lag_events(newest));
    if lag_events(newest) == 0 {
        return check(Verdict::Ok, format!("{subject} has everything"), "");
    }
    if newest.position <= projection.position {
        let finding = format!("{subject} is {behind} events behind and stands still");
        return check(
            Verdict::Fail,
            finding,
            "look at the projector's log, and whether NATS and Postgres answer",
        );
    }
    let finding = format!(
        "{subject} is {behind} events ({}) behind and moves",
        lag_time(newest.lag_ms)
    );
    if newest.lag_ms <= LAG_MAX_MS {
        check(Verdict::Ok, finding, "")
    } else {
        check(
            Verdict::Warn,
            finding,
            "it catches up; `daybook get projections` shows how fast",
        )
    }
}

fn is_same(one: &Projection, other: &Projection) -> bool {
    one.name == other.name && one.partition == other.partition
}

fn one_line(status: Status) -> String {
    Refusal::from(status).to_string().replace("\n  ", "; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order_list(position: u64, lag_ms: u64) -> Projection {
        Projection {
            name: "order_list".to_owned(),
            status: ProjectionStatus::Running.into(),
            position,
            head: 1_000,
            lag_ms,
            ..Projection::default()
        }
    }

    #[test]
    fn a_projection_with_everything_is_well() {
        assert_eq!(keeping_up(&order_list(1_000, 0), &[]).verdict, Verdict::Ok);
    }

    #[test]
    fn a_projection_that_is_behind_and_stands_still_is_wrong() {
        let check = keeping_up(&order_list(10, 9_000), &[order_list(10, 11_000)]);
        assert_eq!(check.verdict, Verdict::Fail);
        assert_eq!(
            check.finding,
            "order_list (partition 0) is 990 events behind and stands still"
        );
    }

    #[test]
    fn a_projection_that_is_far_behind_and_moves_is_worth_a_look() {
        let check = keeping_up(&order_list(10, 9_000), &[order_list(600, 8_000)]);
        assert_eq!(check.verdict, Verdict::Warn);
    }

    #[test]
    fn a_projection_that_has_failed_says_why() {
        let failed = Projection {
            status: ProjectionStatus::Failed.into(),
            error: "position 17: no such order".to_owned(),
            ..order_list(16, 0)
        };
        let check = keeping_up(&failed, &[]);
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.finding.ends_with("no such order"), "{}", check.finding);
    }

    #[test]
    fn the_refusal_that_a_probe_provokes_shows_that_the_key_is_good() {
        let probe = |status| {
            access(
                Service::Command,
                "orders:write",
                Err(status),
                Code::InvalidArgument,
            )
            .verdict
        };
        assert_eq!(probe(Status::invalid_argument("no request id")), Verdict::Ok);
        assert_eq!(probe(Status::permission_denied("no scope")), Verdict::Warn);
        assert_eq!(probe(Status::unauthenticated("no key")), Verdict::Fail);
        assert_eq!(probe(Status::internal("a fault")), Verdict::Fail);
    }
}
