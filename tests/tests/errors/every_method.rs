//! What every gRPC method refuses, whatever it does. Methods come from the descriptors of the wire contract, so a new one
//! is held to this without anyone thinking of it.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use daybook_service::identity::Scope;
use daybook_tests::client::channel;
use daybook_tests::raw::{self, Method};
use daybook_tests::refusal::{code, request_id, value};
use daybook_tests::stack::Stack;
use daybook_tests::{client, log};
use futures::stream::{self, StreamExt as _};
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost_types::field_descriptor_proto::Type;
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A message larger than any service takes, all of it in a field that none has.
fn oversized() -> Bytes {
    let length = 2 * 1_024 * 1_024;
    let mut message = BytesMut::new();
    prost::encoding::encode_key(1_000, prost::encoding::WireType::LengthDelimited, &mut message);
    prost::encoding::encode_varint(length, &mut message);
    message.put_bytes(0, usize::try_from(length).expect("it fits"));
    message.freeze()
}

/// Messages that are not what the method takes: not protobuf at all, and each field with a type that it does not have.
fn malformed(method: &Method) -> Vec<Bytes> {
    let mut messages = vec![
        Bytes::from_static(b"{\"order_id\": 1}"),
        Bytes::from_static(&[0xff; 16]),
    ];
    for field in &method.input.field {
        let number = u32::try_from(field.number()).expect("fields are counted from 1");
        let mut wrong_type = BytesMut::new();
        prost::encoding::encode_key(number, prost::encoding::WireType::SixtyFourBit, &mut wrong_type);
        wrong_type.put_u64(7);
        messages.push(wrong_type.freeze());
        if field.r#type() == Type::String {
            let mut not_utf8 = BytesMut::new();
            prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut not_utf8);
            not_utf8.put_slice(&[2, 0xc3, 0x28]);
            messages.push(not_utf8.freeze());
        }
    }
    messages
}

/// What announces a message of 2 MiB.
const LARGE_PREFIX: [u8; 5] = [0, 0, 0x20, 0, 0];

/// How long a refusal may take that needs nothing but headers.
const PATIENCE: Duration = Duration::from_secs(5);

struct Service {
    url: String,
    channel: Channel,
    scope: Scope,
}

/// Where a method is, and the scope that it needs. Each area has its own scopes; commands need the one to write.
fn service(stack: &Stack, method: &Method) -> anyhow::Result<Service> {
    let area = method.path.trim_start_matches("/daybook.").split('.').next();
    let area = area.context("a method's path begins with its package")?;
    let (url, scope) = match method.service.as_str() {
        "HistoryService" => (stack.query.url(), Some(Scope::EventsRead)),
        "ProjectionService" => (stack.projector.url(), Some(Scope::ProjectionsOperate)),
        query if query.ends_with("QueryService") => {
            (stack.query.url(), Scope::by_name(&format!("{area}:read")))
        }
        _ => (stack.command.url(), Scope::by_name(&format!("{area}:write"))),
    };
    Ok(Service {
        channel: channel(&url)?,
        url,
        scope: scope.with_context(|| format!("{area} has no scopes"))?,
    })
}

fn refused(method: &str, answer: Result<Bytes, Status>, wanted: &str, grpc: Code) -> anyhow::Result<Status> {
    let status = answer
        .err()
        .with_context(|| format!("{method} accepted what is {wanted}"))?;
    ensure!(
        code(&status) == wanted && status.code() == grpc,
        "{method} says {:?} {:?}, not {wanted}: {status:?}",
        status.code(),
        code(&status)
    );
    ensure!(!request_id(&status).is_empty(), "{method} has no request id");
    Ok(status)
}

#[tokio::test]
async fn no_method_answers_without_a_credential_with_a_wrong_one_or_without_its_scope() -> anyhow::Result<()>
{
    let stack = Stack::start().await?;
    let unknown_key = daybook_service::identity::generate_api_key().plain;
    let mut wrong_secret = stack.tenant.service_key.clone();
    wrong_secret.pop();
    wrong_secret.push(if stack.tenant.service_key.ends_with('A') {
        'E'
    } else {
        'A'
    });
    let credentials = [
        None,
        Some(String::new()),
        Some("Bearer".to_owned()),
        Some("Bearer nonsense".to_owned()),
        Some(format!("Bearer {unknown_key}")),
        Some(format!("Bearer {wrong_secret}")),
        Some(format!("Basic {}", stack.tenant.service_key)),
        Some(stack.tenant.service_key.clone()),
    ];
    let methods = raw::methods()?;
    ensure!(
        methods.len() >= 22,
        "the contract has shrunk to {} methods",
        methods.len()
    );
    for method in &methods {
        let service = service(&stack, method)?;
        for credential in &credentials {
            let answer = raw::call(
                &service.channel,
                &method.path,
                credential.as_deref(),
                Bytes::new(),
            )
            .await;
            refused(&method.path, answer, "UNAUTHENTICATED", Code::Unauthenticated)?;
        }
        for key in stack.tenant.keys_without(&stack.superuser, service.scope).await? {
            let authorization = format!("Bearer {key}");
            let answer = raw::call(&service.channel, &method.path, Some(&authorization), Bytes::new()).await;
            let status = refused(&method.path, answer, "PERMISSION_DENIED", Code::PermissionDenied)?;
            assert_eq!(value(&status, "missing_scope"), service.scope.as_str());
        }
    }
    assert_eq!(log::head(&stack.superuser).await?, 0);
    Ok(())
}

/// Calls a method with a body that goes no further than this.
async fn call_begun(
    url: &str,
    path: &str,
    key: &str,
    encoding: &str,
    begun: &'static [u8],
) -> anyhow::Result<Status> {
    let stream = TcpStream::connect(url.trim_start_matches("http://")).await?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let begun = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from_static(begun)))]);
    let request = http::Request::post(format!("{url}{path}"))
        .header("content-type", "application/grpc")
        .header("grpc-encoding", encoding)
        .header("authorization", format!("Bearer {key}"))
        .body(UnsyncBoxBody::new(StreamBody::new(
            begun.chain(stream::pending()),
        )))?;
    let answer = tokio::time::timeout(PATIENCE, sender.send_request(request)).await;
    let answer = answer.with_context(|| format!("{path} waits for the body"))??;
    Status::from_header_map(answer.headers()).with_context(|| format!("{path} accepts it"))
}

#[tokio::test]
async fn no_method_waits_for_a_message_that_it_will_not_take() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    for method in raw::methods()? {
        let service = service(&stack, &method)?;
        for key in stack.tenant.keys_without(&stack.superuser, service.scope).await? {
            let status = call_begun(&service.url, &method.path, &key, "identity", b"").await?;
            assert_eq!(code(&status), "PERMISSION_DENIED", "{}", method.path);
        }
        let key = stack.tenant.key_with(&stack.superuser, service.scope).await?;
        let status = call_begun(&service.url, &method.path, &key, "identity", &LARGE_PREFIX).await?;
        assert_eq!(code(&status), "PAYLOAD_TOO_LARGE", "{}", method.path);
        let status = call_begun(&service.url, &method.path, &key, "gzip", b"").await?;
        assert_eq!(code(&status), "UNSUPPORTED_MEDIA_TYPE", "{}", method.path);
    }
    Ok(())
}

#[tokio::test]
async fn no_method_takes_what_is_not_its_message_or_too_much_of_it() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    for method in raw::methods()? {
        let service = service(&stack, &method)?;
        let key = stack.tenant.key_with(&stack.superuser, service.scope).await?;
        let authorization = format!("Bearer {key}");
        let call =
            async |message| raw::call(&service.channel, &method.path, Some(&authorization), message).await;
        for message in malformed(&method) {
            let answer = call(message.clone()).await;
            refused(&method.path, answer, "MALFORMED_REQUEST", Code::InvalidArgument)
                .with_context(|| format!("{message:?}"))?;
        }
        refused(
            &method.path,
            call(oversized()).await,
            "PAYLOAD_TOO_LARGE",
            Code::ResourceExhausted,
        )?;
    }
    assert_eq!(log::head(&stack.superuser).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_method_that_does_not_exist_is_in_the_catalogue_too() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let authorization = format!("Bearer {}", stack.tenant.frontend_key);
    for url in [stack.command.url(), stack.query.url(), stack.projector.url()] {
        let channel = client::channel(&url)?;
        for path in [
            "/daybook.orders.v1.OrderService/UpdateOrder",
            "/daybook.orders.v2.OrderService/PlaceOrder",
            "/nonsense",
        ] {
            let answer = raw::call(&channel, path, Some(&authorization), Bytes::new()).await;
            refused(path, answer, "METHOD_NOT_ALLOWED", Code::Unimplemented)?;
            // A stranger does not learn what there is.
            let answer = raw::call(&channel, path, None, Bytes::new()).await;
            refused(path, answer, "UNAUTHENTICATED", Code::Unauthenticated)?;
        }
    }
    Ok(())
}
