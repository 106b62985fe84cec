//! The methods and routes of an aggregate's commands, from one list.

/// Implements a gRPC service whose methods all do the same, each with another request, and the routes of the same requests over
/// HTTP; for callers and for other replicas. The first one takes a batch of requests that begin an aggregate.
macro_rules! command_methods {
    (
        $service:ident by $server:ident for $aggregate:ty:
        batch of $item:ident by $batch_method:ident($batch_request:ident) -> $batch_response:ident;
        $($method:ident($request:ident) -> $response:ident;)+
    ) => {
        impl $crate::handler::Commands for $aggregate {
            fn add_service(
                services: daybook_service::grpc::GrpcServices,
                handler: std::sync::Arc<$crate::handler::Handler<Self>>,
            ) -> daybook_service::grpc::GrpcServices {
                let service = $server::from_arc(handler)
                    .max_decoding_message_size($crate::COMMAND_BYTES_MAX)
                    .max_encoding_message_size($crate::COMMAND_BYTES_MAX);
                let scope = <Self as $crate::handler::Served>::SCOPE;
                let needs = daybook_service::server::Needs::scope(scope);
                services.with(service, needs.with_message($crate::COMMAND_BYTES_MAX))
            }

            fn routes() -> $crate::http::Routes<Self> {
                let routes = $crate::http::Routes::default()$(.with::<wire::$request>())+;
                routes.with_batch::<wire::$item>(stringify!($batch_request))
            }
        }

        #[tonic::async_trait]
        impl $service for $crate::handler::Handler<$aggregate> {
            $(
                async fn $method(
                    &self,
                    request: tonic::Request<wire::$request>,
                ) -> Result<tonic::Response<wire::$response>, tonic::Status> {
                    let answer = self.answer_call(request).await?;
                    Ok(answer.map(|receipt| wire::$response { receipt: Some(receipt) }))
                }
            )+

            async fn $batch_method(
                &self,
                request: tonic::Request<wire::$batch_request>,
            ) -> Result<tonic::Response<wire::$batch_response>, tonic::Status> {
                let (_, extensions, request) = request.into_parts();
                let mode = request.mode();
                let batch = $crate::batch::Batch::new(request.request_id, mode, request.items);
                let answer = self.handle_batch(batch, &extensions).await?;
                let (is_replay, summary) = (answer.is_replay, Some(answer.summary()));
                let results = answer.into_results();
                let response = wire::$batch_response { results, summary };
                Ok($crate::handler::marked(tonic::Response::new(response), is_replay))
            }
        }

        #[tonic::async_trait]
        impl $crate::home::HandleForwarded for $crate::handler::Handler<$aggregate> {
            async fn handle_forwarded(
                &self,
                request: $crate::home::Request<'_>,
                caller: &$crate::handler::Caller,
                from: uuid::Uuid,
            ) -> Option<$crate::home::Forwarded> {
                let $crate::home::Request { name, key, content } = request;
                match name {
                    $(<wire::$request as daybook_proto::convert::CommandRequest>::NAME => {
                        Some(self.handle_for::<wire::$request>(key, content, caller, from).await)
                    })+
                    _ => None,
                }
            }
        }
    };
}

pub(crate) use command_methods;
