//! How the process ends. Scripts branch on these numbers, so they never change.

use std::process::ExitCode;

use tonic::Code;

/// The meaning of an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// It is done.
    Done = 0,
    /// It failed, or not all of it was done.
    Failed = 1,
    /// What was asked for cannot be understood. (clap exits with the same number.)
    Usage = 2,
    /// There is no such thing.
    NotFound = 3,
    /// It exists already, has another version, or a rule of the domain forbids it in this state.
    Conflict = 4,
    /// The credential is missing, not valid, or lacks a scope.
    NotAllowed = 5,
    /// It took too long; whether it was done is unknown.
    TimedOut = 6,
    /// A server does not answer or takes nothing now.
    Unavailable = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<Code> for Exit {
    fn from(code: Code) -> Self {
        match code {
            Code::Ok => Self::Done,
            Code::InvalidArgument | Code::OutOfRange => Self::Usage,
            Code::NotFound => Self::NotFound,
            Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => Self::Conflict,
            Code::Unauthenticated | Code::PermissionDenied => Self::NotAllowed,
            // tonic says "cancelled" when its own timer ends a call.
            Code::DeadlineExceeded | Code::Cancelled => Self::TimedOut,
            Code::Unavailable | Code::ResourceExhausted => Self::Unavailable,
            Code::Unknown | Code::Unimplemented | Code::Internal | Code::DataLoss => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_grpc_code_has_its_exit_code() {
        let expected = [
            (Code::Ok, 0),
            (Code::Cancelled, 6),
            (Code::Unknown, 1),
            (Code::InvalidArgument, 2),
            (Code::DeadlineExceeded, 6),
            (Code::NotFound, 3),
            (Code::AlreadyExists, 4),
            (Code::PermissionDenied, 5),
            (Code::ResourceExhausted, 7),
            (Code::FailedPrecondition, 4),
            (Code::Aborted, 4),
            (Code::OutOfRange, 2),
            (Code::Unimplemented, 1),
            (Code::Internal, 1),
            (Code::Unavailable, 7),
            (Code::DataLoss, 1),
            (Code::Unauthenticated, 5),
        ];
        for (code, number) in expected {
            assert_eq!(Exit::from(code) as u8, number, "{code:?}");
        }
    }
}
