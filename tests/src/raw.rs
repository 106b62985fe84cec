//! gRPC calls whose message is any bytes, for requests that no client library would send; and every method that there
//! is, from the descriptors of the wire contract.

use anyhow::Context as _;
use bytes::{Buf as _, BufMut as _, Bytes};
use http::uri::PathAndQuery;
use prost::Message as _;
use prost_types::{DescriptorProto, FileDescriptorSet};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status};

/// The largest message that a call of ours sends or takes: more than any service does.
const MESSAGE_BYTES_MAX: usize = 64 * 1_024 * 1_024;

/// A method of the wire contract.
#[derive(Debug, Clone)]
pub struct Method {
    /// The service without its package ("OrderService").
    pub service: String,
    /// Where it is called.
    pub path: String,
    /// What it takes.
    pub input: DescriptorProto,
}

/// Every method of the wire contract.
///
/// # Errors
/// When the descriptors are not whole.
pub fn methods() -> anyhow::Result<Vec<Method>> {
    let files = FileDescriptorSet::decode(daybook_proto::FILE_DESCRIPTOR_SET)?.file;
    let mut methods = Vec::new();
    for file in files.iter().filter(|file| file.package().starts_with("daybook.")) {
        for service in &file.service {
            for method in &service.method {
                let input = files.iter().find_map(|file| {
                    let prefix = format!(".{}.", file.package());
                    let name = method.input_type().strip_prefix(&prefix)?;
                    file.message_type.iter().find(|message| message.name() == name)
                });
                methods.push(Method {
                    service: service.name().to_owned(),
                    path: format!("/{}.{}/{}", file.package(), service.name(), method.name()),
                    input: input.context("a method's input is a message")?.clone(),
                });
            }
        }
    }
    Ok(methods)
}

/// Calls a method with a message that is these bytes. `authorization` is the whole value of the header.
///
/// # Errors
/// The status of the refusal.
pub async fn call(
    channel: &Channel,
    path: &str,
    authorization: Option<&str>,
    message: Bytes,
) -> Result<Bytes, Status> {
    let path: PathAndQuery = path
        .parse()
        .map_err(|_| Status::invalid_argument("this is no path"))?;
    let mut request = Request::new(message);
    if let Some(authorization) = authorization {
        let value = authorization
            .parse()
            .map_err(|_| Status::invalid_argument("this is no header"))?;
        request.metadata_mut().insert("authorization", value);
    }
    let mut client = Grpc::new(channel.clone())
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
        .max_decoding_message_size(MESSAGE_BYTES_MAX);
    client
        .ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(client.unary(request, path, AnyBytes).await?.into_inner())
}

/// Messages as they are.
#[derive(Debug, Clone, Copy, Default)]
struct AnyBytes;

impl Codec for AnyBytes {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for AnyBytes {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for AnyBytes {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}
