//! The variables of a path, as an axum extractor whose refusals are problems of the catalogue.

use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path as AxumPath};
use http::request::Parts;
use serde::de::DeserializeOwned;

use crate::error::ApiError;

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

/// A path that does not parse names nothing that could exist; a route with other variables than its handler is our fault.
fn path_error(rejection: PathRejection) -> ApiError {
    if rejection.status().is_server_error() {
        ApiError::internal(rejection)
    } else {
        ApiError::malformed("the path is not valid")
    }
}
