//! Callers: what a service, a frontend, an auditor and an operator would use.

use std::time::Duration;

use daybook_client::{Authorized, Command, Connection, Credential};
use daybook_proto::common::v1::Receipt;
use daybook_proto::history::v1::history_service_client::HistoryServiceClient;
use daybook_proto::orders::v1::order_query_service_client::OrderQueryServiceClient;
use daybook_proto::orders::v1::order_service_client::OrderServiceClient;
use daybook_proto::orders::v1::{CancelOrderRequest, ChangeLineQuantityRequest, PlaceOrderRequest};
use daybook_proto::projections::v1::projection_service_client::ProjectionServiceClient;
use daybook_proto::stock::v1::stock_query_service_client::StockQueryServiceClient;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tonic::Status;
use tonic::transport::Channel;

use crate::described;
use crate::orders::{new_key, place};
use crate::tenant::Tenant;

/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long any other call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A channel that connects when it is first used, and shows no key.
///
/// # Errors
/// When the URL is not one.
pub fn channel(url: &str) -> anyhow::Result<Channel> {
    Ok(Connection::open(url)?.channel())
}

/// What shows a key on every call.
///
/// # Errors
/// When the key is not ASCII.
pub fn credential(key: &str) -> anyhow::Result<Credential> {
    Ok(Credential::new(key, CALL_TIMEOUT)?)
}

/// An answer over HTTP.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as it came.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; null when it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// A header's text, "" when it is absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }
}

/// All that a tenant's people and services do.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The tenant and its keys.
    pub tenant: Tenant,
    command: Connection,
    query: Connection,
    projector: Connection,
    query_url: String,
    http: Client<HttpConnector, Empty<Bytes>>,
}

impl Caller {
    /// # Errors
    /// When a URL is not one.
    pub fn new(command: &str, query: &str, projector: &str, tenant: Tenant) -> anyhow::Result<Self> {
        Ok(Self {
            tenant,
            command: Connection::open(command)?,
            query: Connection::open(query)?,
            projector: Connection::open(projector)?,
            query_url: query.to_owned(),
            http: Client::builder(TokioExecutor::new()).build_http(),
        })
    }

    /// The command service, as a service calls it.
    #[must_use]
    pub fn commands(&self) -> Authorized {
        authorized(&self.command, &self.tenant.service_key)
    }

    /// Commands on orders.
    #[must_use]
    pub fn orders(&self) -> OrderServiceClient<Authorized> {
        OrderServiceClient::new(self.commands())
    }

    /// Queries of stock levels over gRPC.
    #[must_use]
    pub fn stock_queries(&self) -> StockQueryServiceClient<Authorized> {
        StockQueryServiceClient::new(authorized(&self.query, &self.tenant.frontend_key))
    }

    /// Queries over gRPC.
    #[must_use]
    pub fn queries(&self) -> OrderQueryServiceClient<Authorized> {
        OrderQueryServiceClient::new(authorized(&self.query, &self.tenant.frontend_key))
    }

    /// Histories over gRPC.
    #[must_use]
    pub fn histories(&self) -> HistoryServiceClient<Authorized> {
        HistoryServiceClient::new(authorized(&self.query, &self.tenant.auditor_key))
    }

    /// Projections.
    #[must_use]
    pub fn projections(&self) -> ProjectionServiceClient<Authorized> {
        ProjectionServiceClient::new(authorized(&self.projector, &self.tenant.operator_key))
    }

    /// Sends a command.
    ///
    /// # Errors
    /// The status of the refusal.
    pub async fn send(&self, command: impl Command) -> Result<Receipt, Status> {
        command.send(self.commands(), PATIENCE).await
    }

    /// Sends a request to place an order.
    ///
    /// # Errors
    /// The status of the refusal.
    pub async fn send_place(&self, request: PlaceOrderRequest) -> Result<Receipt, Status> {
        let response = self.orders().place_order(request).await?;
        Ok(response
            .into_inner()
            .receipt
            .expect("a command that is accepted has a receipt"))
    }

    /// Places a new order of [`place`]'s.
    ///
    /// # Errors
    /// The status of the refusal.
    pub async fn place(&self, order_id: &str, customer_id: &str) -> Result<Receipt, Status> {
        self.send_place(place(order_id, customer_id)).await
    }

    /// Changes the quantity of an order's first line.
    ///
    /// # Errors
    /// The status of the refusal.
    pub async fn change_quantity(
        &self,
        order_id: &str,
        quantity: u32,
        expected_version: Option<u64>,
    ) -> Result<Receipt, Status> {
        let request = ChangeLineQuantityRequest {
            request_id: new_key(),
            order_id: order_id.to_owned(),
            line_number: 1,
            quantity,
            expected_version,
            ..Default::default()
        };
        let response = self.orders().change_line_quantity(request).await?;
        Ok(response
            .into_inner()
            .receipt
            .expect("a command that is accepted has a receipt"))
    }

    /// Cancels an order.
    ///
    /// # Errors
    /// The status of the refusal.
    pub async fn cancel(&self, order_id: &str) -> Result<Receipt, Status> {
        let request = CancelOrderRequest {
            request_id: new_key(),
            order_id: order_id.to_owned(),
            cancellation_reason: "changed my mind".to_owned(),
            ..Default::default()
        };
        let response = self.orders().cancel_order(request).await?;
        Ok(response
            .into_inner()
            .receipt
            .expect("a command that is accepted has a receipt"))
    }

    /// Reads over HTTP with a key and headers; without a key when it is "".
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn get_as(&self, key: &str, path: &str, headers: &[(&str, &str)]) -> anyhow::Result<Answer> {
        self.http(http::Method::GET, key, path, headers).await
    }

    /// Sends a request without a body to the query service.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn http(
        &self,
        method: http::Method,
        key: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<Answer> {
        let uri = format!("{}{path}", self.query_url);
        let mut request = http::Request::builder()
            .method(method.clone())
            .uri(uri)
            .body(Empty::new())?;
        if !key.is_empty() {
            let bearer = HeaderValue::from_str(&format!("Bearer {key}"))?;
            request.headers_mut().insert(AUTHORIZATION, bearer);
        }
        for (name, value) in headers {
            let name = http::HeaderName::from_bytes(name.as_bytes())?;
            request.headers_mut().insert(name, HeaderValue::from_str(value)?);
        }
        let response = self.http.request(request).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        let answer = Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        };
        described::check(&method, path, &answer)?;
        Ok(answer)
    }

    /// Reads over HTTP as an auditor, who may read everything.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.get_as(&self.tenant.auditor_key, path, &[]).await
    }

    /// Reads what a command did: waits until the read model has it.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn get_after(&self, token: &str, path: &str) -> anyhow::Result<Answer> {
        let headers = [("daybook-consistency", token), ("prefer", "wait=10")];
        self.get_as(&self.tenant.auditor_key, path, &headers).await
    }
}

fn authorized(connection: &Connection, key: &str) -> Authorized {
    connection.with(credential(key).expect("our own keys are ASCII"))
}
