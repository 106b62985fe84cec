//! Deprecated operations: headers that say so (`Deprecation`, RFC 9745; `Sunset`, RFC 8594; `Link` to what takes its
//! place), and [`GONE`](crate::Code::Gone) after that.

use axum::response::{IntoResponse as _, Response};
use http::header::LINK;
use http::{HeaderMap, HeaderName, HeaderValue};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::error::ApiError;

/// Since when it is deprecated.
const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");

/// When it ends.
const SUNSET: HeaderName = HeaderName::from_static("sunset");

/// A moment as HTTP writes it (RFC 9110, 5.6.7).
const HTTP_DATE: &[BorrowedFormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");

/// Something that is deprecated.
#[derive(Clone, Copy, Debug)]
pub struct Deprecation {
    /// Since when.
    pub since: OffsetDateTime,
    /// When it ends: by contract at least six months later.
    pub sunset: OffsetDateTime,
}

impl Deprecation {
    /// Answers a request over HTTP to something whose successor is at this address: as ever before the sunset, and with
    /// `GONE` after it.
    pub async fn answer(
        &self,
        successor: &str,
        answered: impl Future<Output = Result<Response, ApiError>>,
    ) -> Response {
        let answered = match self.check(successor) {
            Ok(()) => answered.await,
            Err(gone) => Err(gone),
        };
        let mut response = answered.into_response();
        response.headers_mut().extend(self.headers(successor));
        response
    }

    /// The same for a call of gRPC.
    ///
    /// # Errors
    /// `GONE` after the sunset, else what the call is refused with.
    pub async fn call<T>(
        &self,
        successor: &str,
        answered: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<tonic::Response<T>, Status> {
        let answered = match self.check(successor) {
            Ok(()) => answered.await,
            Err(gone) => Err(gone),
        };
        let metadata = MetadataMap::from_headers(self.headers(successor));
        match answered {
            Ok(message) => Ok(tonic::Response::from_parts(
                metadata,
                message,
                tonic::Extensions::default(),
            )),
            Err(error) => {
                let mut status = Status::from(error);
                status.metadata_mut().as_mut().extend(metadata.into_headers());
                Err(status)
            }
        }
    }

    fn check(&self, successor: &str) -> Result<(), ApiError> {
        if OffsetDateTime::now_utc() < self.sunset {
            return Ok(());
        }
        let sunset = self.sunset.format(&Rfc3339).map_err(ApiError::internal)?;
        Err(ApiError::gone(sunset, successor))
    }

    fn headers(&self, successor: &str) -> HeaderMap {
        let since = format!("@{}", self.since.unix_timestamp());
        let sunset = self.sunset.to_offset(time::UtcOffset::UTC).format(HTTP_DATE);
        let link = format!("<{successor}>; rel=\"successor-version\"");
        let headers = [
            (DEPRECATION, Some(since)),
            (SUNSET, sunset.ok()),
            (LINK, Some(link)),
        ];
        let headers = headers.into_iter().filter_map(|(name, text)| {
            // An address in a path of ours is visible ASCII; what is not says nothing.
            Some((name, HeaderValue::from_str(&text?).ok()?))
        });
        headers.collect()
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use time::macros::datetime;

    use super::*;

    fn deprecation(sunset: OffsetDateTime) -> Deprecation {
        Deprecation {
            since: datetime!(2026-12-01 00:00 UTC),
            sunset,
        }
    }

    #[tokio::test]
    async fn what_is_deprecated_says_since_when_until_when_and_what_takes_its_place() {
        let deprecation = deprecation(datetime!(9999-12-31 23:59:59 UTC));
        for answered in [Ok(Response::default()), Err(ApiError::not_found("order", "7"))] {
            let response = deprecation.answer("/v1/new", async { answered }).await;
            assert_ne!(response.status(), StatusCode::GONE);
            for (name, value) in [
                ("deprecation", "@1796083200"),
                ("sunset", "Fri, 31 Dec 9999 23:59:59 GMT"),
                ("link", "</v1/new>; rel=\"successor-version\""),
            ] {
                assert_eq!(response.headers()[name], value);
            }
        }
    }

    #[tokio::test]
    async fn after_its_sunset_it_is_gone_and_nothing_is_done() {
        let deprecation = deprecation(datetime!(2026-12-02 00:00 UTC).min(OffsetDateTime::now_utc()));
        let never = async { panic!("it is over") };
        let response = deprecation.answer("/v1/new", never).await;
        assert_eq!(response.status(), StatusCode::GONE);
        assert!(response.headers().contains_key("sunset"));
        let never = async { panic!("it is over") };
        let status = deprecation
            .call::<()>("/v1/new", never)
            .await
            .expect_err("it is over");
        assert_eq!(status.code(), tonic::Code::NotFound);
        assert_eq!(
            status.metadata().get("link").map(|link| link.as_bytes()),
            Some(&b"</v1/new>; rel=\"successor-version\""[..])
        );
    }
}
