//! Answers as web pages of other origins see them.

use axum::body::Bytes;
use daybook_service::server::{Access, Cors, Limits, Origin};
use http::Request;
use http_body_util::Full;

use crate::Server;

const SHOP: &str = "https://shop.example";

const KIB: usize = 1_024;

#[tokio::test]
async fn a_page_sees_all_that_a_refusal_over_grpc_web_carries() {
    let limits = Limits {
        bytes_in_flight_max: 8 * KIB,
        ..Limits::default()
    };
    let shop: Origin = SHOP.parse().expect("an origin");
    let server = Server::start_with(Access::Anybody, limits, Cors::of(&[shop])).await;
    let call = Request::post(server.url("/t.v1.T/Collect"))
        .header("origin", SHOP)
        .header("content-type", "application/grpc-web+proto")
        .body(Full::from(Bytes::from(vec![0; 9 * KIB])));
    let refused = server.request(call.expect("a valid request")).await;
    assert_eq!(refused.headers()["grpc-retry-pushback-ms"], "1000");
    let exposed = refused.headers()["access-control-expose-headers"].to_str();
    let exposed: Vec<_> = exposed.expect("text").split(',').collect();
    for name in ["grpc-status", "grpc-status-details-bin", "grpc-retry-pushback-ms"] {
        assert!(exposed.contains(&name), "a page does not see {name}");
    }
}
