//! What the OpenAPI description says about exports.

use daybook_service::Code;
use daybook_service::identity::Scope;
use daybook_service::openapi::API_KEY;
use utoipa::ToSchema as _;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{HttpMethod, Operation, OperationBuilder};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{Object, Type};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, Required, SecurityRequirement};

use super::request::{EventExportRequest, Format};
use crate::http::key_parameter;
use crate::operations::description::{TAG, add_schema, id, of, responses};
use crate::operations::http::OperationAnswer;

/// Adds exports and their files.
pub(in crate::operations) fn add_to(api: &mut OpenApi) {
    add_schema::<EventExportRequest>(api);
    let paths = [
        ("/v1/event-exports", HttpMethod::Post, begin()),
        ("/v1/operations/{operation_id}/output", HttpMethod::Get, output()),
    ];
    for (path, method, operation) in paths {
        api.paths.add_path_operation(path, vec![method], operation);
    }
}

fn operation(id: &str, summary: &str) -> OperationBuilder {
    OperationBuilder::new()
        .tag(TAG)
        .operation_id(Some(id))
        .summary(Some(summary))
        .security(SecurityRequirement::new(API_KEY, [Scope::EventsRead.as_str()]))
}

fn begin() -> Operation {
    let request = Ref::from_schema_name(EventExportRequest::name());
    let body = RequestBodyBuilder::new()
        .content(
            "application/json",
            ContentBuilder::new().schema(Some(request)).build(),
        )
        .required(Some(Required::True));
    operation("exportEvents", "Exports the tenant's events into a file.")
        .description(Some(
            "All that the log has now and that passes the filters, in the order of the log: what is recorded later is not in it. The \
             operation goes on by itself, and tells the manifest when it has succeeded. Its file is at `output`, for as long as the \
             operation is kept; a tenant has room for 16 GiB, and one file for 4 GiB of it.",
        ))
        .parameter(key_parameter())
        .request_body(Some(body.build()))
        .responses(responses(
            "202",
            "It was taken; `Location` says where its operation is.",
            "application/json",
            of::<OperationAnswer>(),
            &[Code::UnsupportedMediaType, Code::IdempotencyKeyReused],
        ))
        .build()
}

fn output() -> Operation {
    let file = || {
        ContentBuilder::new()
            .schema(Some(Object::with_type(Type::String)))
            .build()
    };
    let others = [Code::ResourceNotFound, Code::OperationRunning];
    let what = "The file: NDJSON has on each line an event as the event feed shows it, CSV a row for each event below a row of \
                names, and no cell that begins like a formula.";
    let ndjson = Format::Ndjson.media_type();
    let mut responses = responses("200", what, ndjson, file(), &others);
    if let Some(RefOr::T(done)) = responses.responses.get_mut("200") {
        done.content.insert("text/csv".to_owned(), file().into());
        for (name, what) in [
            ("ETag", "The SHA-256 of the file, as the manifest has it."),
            ("Content-Disposition", "What the file may be called."),
        ] {
            let header = HeaderBuilder::new()
                .schema(Some(Object::with_type(Type::String)))
                .description(Some(what));
            done.headers.insert(name.to_owned(), header.build().into());
        }
    }
    operation("getOperationOutput", "The file of an export that has succeeded.")
        .parameter(id())
        .responses(responses)
        .build()
}
