//! Commands and other requests with a body, over HTTP.

use anyhow::Context as _;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::client::Answer;
use crate::described;

/// Who sends requests to one service.
#[derive(Debug, Clone)]
pub struct Rest {
    url: String,
    key: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Rest {
    /// A caller with this API key; without one when it is "".
    #[must_use]
    pub fn new(url: &str, key: &str) -> Self {
        Self {
            url: url.to_owned(),
            key: key.to_owned(),
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    /// The same caller with another API key.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self {
            key: key.to_owned(),
            ..self.clone()
        }
    }

    /// Sends a command under an idempotency key.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn command(&self, path: &str, idempotency_key: &str, body: &Value) -> anyhow::Result<Answer> {
        self.command_with(path, &[("idempotency-key", idempotency_key)], body)
            .await
    }

    /// Sends a command with these headers.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn command_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> anyhow::Result<Answer> {
        self.send(Method::POST, path, headers, body.to_string()).await
    }

    /// Sends a request. A body is JSON where the headers do not say something else.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Answer> {
        let request = Request::builder()
            .method(method.clone())
            .uri(format!("{}{path}", self.url))
            .header(CONTENT_TYPE, "application/json");
        let mut request = request.body(Full::from(body.into()))?;
        if !self.key.is_empty() {
            let bearer = HeaderValue::from_str(&format!("Bearer {}", self.key))?;
            request.headers_mut().insert(AUTHORIZATION, bearer);
        }
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes())?;
            request.headers_mut().insert(name, HeaderValue::from_str(value)?);
        }
        let response = self.client.request(request).await.context("there is no answer")?;
        let (parts, body) = response.into_parts();
        let answer = Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.collect().await?.to_bytes(),
        };
        described::check(&method, path, &answer)?;
        Ok(answer)
    }
}
