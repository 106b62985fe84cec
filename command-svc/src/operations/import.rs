//! Lines of an import, each of which is a command that begins an aggregate and takes the path of all commands.

use std::sync::Arc;
use std::time::Duration;

use daybook_proto::convert::CommandRequest;
use daybook_service::error::{ApiError, Retry};
use daybook_service::identity::Scope;
use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::input::LINE_BYTES_MAX;
use crate::handler::{Caller, Handler, Served};

/// The pause after the first attempt that failed; it doubles with each one.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// How a line of an import is read. The id of what it begins and its idempotency key follow from what the line is about: the
/// same line again changes nothing.
pub(crate) trait Imported: Served {
    /// What a line looks like, for people.
    const LINE: &'static str;

    /// What it asks for.
    type Request: CommandRequest<Aggregate = Self> + Clone;

    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it. What is only wrong by the rules of the domain is for the command to be refused for.
    fn read_line(line: &[u8]) -> Result<Line<Self::Request>, ApiError>;
}

/// What can be imported.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Importable {
    /// What it is called in addresses.
    pub(crate) name: &'static str,
    /// The scope that its import needs.
    pub(crate) scope: Scope,
    /// What a line looks like, for people.
    pub(crate) line: &'static str,
}

impl Importable {
    /// The aggregates of this kind.
    pub(crate) fn of<A: Imported>() -> Self {
        Self {
            name: A::PLURAL,
            scope: A::SCOPE,
            line: A::LINE,
        }
    }
}

/// A line that could be read.
#[derive(Debug, PartialEq)]
pub(crate) struct Line<R> {
    /// What it is about, in the caller's words.
    pub(crate) reference: String,
    /// What it asks for, with its key.
    pub(crate) request: R,
}

/// A line on its way.
pub(crate) struct UnderWay {
    /// What it is about, where that could be read.
    pub(super) reference: Option<String>,
    /// Its idempotency key, where it has one.
    pub(super) key: Option<String>,
    /// Does it, again and again while that may help.
    pub(super) doing: BoxFuture<'static, Result<(), ApiError>>,
}

/// What imports lines of one kind.
pub(crate) trait Import: Send + Sync {
    /// What the kind is called in addresses.
    fn kind(&self) -> &'static str;

    /// The scope that an import needs.
    fn scope(&self) -> Scope;

    /// Begins to do what a line asks for.
    fn begin(self: Arc<Self>, line: &[u8], caller: Arc<Caller>) -> UnderWay;
}

impl<A: Imported> Import for Handler<A> {
    fn kind(&self) -> &'static str {
        A::PLURAL
    }

    fn scope(&self) -> Scope {
        A::SCOPE
    }

    fn begin(self: Arc<Self>, line: &[u8], caller: Arc<Caller>) -> UnderWay {
        match read::<A>(line) {
            Ok(Line { reference, request }) => UnderWay {
                reference: Some(reference),
                key: Some(request.request_id().to_owned()),
                doing: handle(self, request, caller).boxed(),
            },
            Err(error) => UnderWay {
                reference: None,
                key: None,
                doing: std::future::ready(Err(error)).boxed(),
            },
        }
    }
}

fn read<A: Imported>(line: &[u8]) -> Result<Line<A::Request>, ApiError> {
    if line.len() > LINE_BYTES_MAX {
        return Err(ApiError::payload_too_large(LINE_BYTES_MAX));
    }
    A::read_line(line)
}

/// Handles a command until it is answered for good: nobody waits for it, so it waits for whatever is away.
async fn handle<A: Imported>(
    handler: Arc<Handler<A>>,
    request: A::Request,
    caller: Arc<Caller>,
) -> Result<(), ApiError> {
    let mut pause = PAUSE_MIN;
    loop {
        let error = match handler.handle_anywhere(request.clone(), &caller).await {
            Ok(_answer) => return Ok(()),
            Err(error) => error,
        };
        if !matches!(error.code().entry().retry, Retry::Later | Retry::SameKey) {
            return Err(error);
        }
        // Never the same for all: they were refused together.
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
