//! axum extractors whose refusals are problems of the catalogue, with a pointer to what is wrong where one is known.

use axum::Json as AxumJson;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path as AxumPath, Query as AxumQuery, Request};
use http::StatusCode;
use http::request::Parts;
use serde::de::DeserializeOwned;

use crate::error::{ApiError, Code, FieldViolation};

/// A JSON body.
#[derive(Clone, Copy, Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let AxumJson(body) = AxumJson::from_request(request, state).await.map_err(json_error)?;
        Ok(Self(body))
    }
}

/// The query string.
#[derive(Clone, Copy, Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let AxumQuery(query) = AxumQuery::from_request_parts(parts, state)
            .await
            .map_err(query_error)?;
        Ok(Self(query))
    }
}

/// The variables of the path.
#[derive(Clone, Copy, Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let AxumPath(path) = AxumPath::from_request_parts(parts, state)
            .await
            .map_err(path_error)?;
        Ok(Self(path))
    }
}

fn json_error(rejection: JsonRejection) -> ApiError {
    match rejection {
        JsonRejection::MissingJsonContentType(_) => {
            ApiError::unsupported_media_type("the body must be application/json")
        }
        JsonRejection::JsonSyntaxError(error) => ApiError::malformed(error.body_text()),
        JsonRejection::JsonDataError(error) => {
            let violation = FieldViolation::new("", "INVALID", error.body_text());
            ApiError::new(Code::ValidationFailed, "the body has not the expected fields")
                .with_violation(violation)
        }
        other if other.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            ApiError::new(Code::PayloadTooLarge, "the body is too large")
        }
        _ => ApiError::malformed("the body cannot be read"),
    }
}

fn query_error(rejection: QueryRejection) -> ApiError {
    let violation = FieldViolation::new("query", "INVALID", rejection.body_text());
    ApiError::new(Code::ValidationFailed, "the query string is not valid").with_violation(violation)
}

/// A path that does not parse names nothing that could exist; a route with other variables than its handler is our fault.
fn path_error(rejection: PathRejection) -> ApiError {
    if rejection.status().is_server_error() {
        ApiError::internal(rejection)
    } else {
        ApiError::malformed("the path is not valid")
    }
}
