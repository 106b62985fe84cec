//! A client that knows an address asks the service what it offers.

use bytes::Bytes;
use daybook_tests::client::channel;
use daybook_tests::raw;
use daybook_tests::stack::Stack;

/// `ServerReflectionRequest { list_services: "*" }`.
const LIST_SERVICES: &[u8] = &[0x3a, 0x01, b'*'];

#[tokio::test]
async fn every_service_answers_reflection_in_both_versions_and_names_what_it_serves() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let served = [
        (&stack.command, "daybook.orders.v1.OrderService"),
        (&stack.query, "daybook.history.v1.HistoryService"),
        (&stack.projector, "daybook.projections.v1.ProjectionService"),
    ];
    for (running, service) in served {
        let channel = channel(&running.url())?;
        for version in ["v1", "v1alpha"] {
            let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
            let answer = raw::call(&channel, &path, None, Bytes::from_static(LIST_SERVICES)).await?;
            let text = String::from_utf8_lossy(&answer).into_owned();
            assert!(text.contains(service), "{version}: {service} is not among {text}");
        }
    }
    Ok(())
}
