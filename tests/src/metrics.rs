//! What a service says of itself on its private listener.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

/// A counter or gauge summed over its labels; 0 when there is none of this name.
///
/// # Errors
/// When the service does not answer, or a sample is not a number.
pub async fn sum(admin: SocketAddr, name: &str) -> anyhow::Result<f64> {
    let (_, text) = get(admin, "/metrics").await?;
    let mut sum = 0.0;
    for line in text.lines() {
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
    let (status, dependencies) = get(admin, "/readyz").await?;
    ensure!(status == 200, "{status} {dependencies}");
    Ok(())
}

/// The status and the text that the private listener answers with.
///
/// # Errors
/// When the service does not answer.
pub async fn get(admin: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let response = client.get(format!("http://{admin}{path}").parse()?).await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8(body.to_vec())?))
}
