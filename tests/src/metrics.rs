//! What a service says of itself on its private listener.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use http::Response;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

/// A counter or gauge summed over its labels; 0 when there is none of this name.
///
/// # Errors
/// When the service does not answer, or a sample is not a number.
pub async fn sum(admin: SocketAddr, name: &str) -> anyhow::Result<f64> {
    let response = get(admin, "/metrics").await?;
    let text = response.into_body().collect().await?.to_bytes();
    let mut sum = 0.0;
    for line in std::str::from_utf8(&text)?.lines() {
        let Some(rest) = line.strip_prefix(name) else {
            continue;
        };
        if rest.starts_with(['{', ' ']) {
            let sample = rest.rsplit(' ').next().context("a sample has a value")?;
            sum += sample.parse::<f64>()?;
        }
    }
    Ok(sum)
}

/// Fails unless the service says that it is ready.
///
/// # Errors
/// When it says that it is not, or nothing.
pub async fn ready(admin: SocketAddr) -> anyhow::Result<()> {
    let response = get(admin, "/readyz").await?;
    let status = response.status();
    let dependencies = response.into_body().collect().await?.to_bytes();
    ensure!(
        status == 200,
        "{status} {}",
        String::from_utf8_lossy(&dependencies)
    );
    Ok(())
}

async fn get(admin: SocketAddr, path: &str) -> anyhow::Result<Response<Incoming>> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    Ok(client.get(format!("http://{admin}{path}").parse()?).await?)
}
