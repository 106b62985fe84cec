//! NATS as its administrator sees it, for what no service does.

use daybook_event_bus::bus;

/// A client that signs in as the address says.
///
/// # Errors
/// When the server does not let it in.
pub async fn connect(url: &str) -> anyhow::Result<async_nats::Client> {
    let (servers, options) = bus::servers(url)?;
    Ok(options.connect(servers).await?)
}
