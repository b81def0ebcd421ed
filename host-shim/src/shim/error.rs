//! What a call of containerd's can fail with. containerd acts on the code: a wrong one for what is gone already makes it try for ever.

use std::fmt::Display;

use ttrpc::Code;

/// An error of the Task service.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// There is no such container or process, or it has ended.
    #[error("{0}: not found")]
    NotFound(String),
    /// There is one already.
    #[error("{0}: exists already")]
    AlreadyExists(String),
    /// It can't be done now, in the state that it is in.
    #[error("{0}")]
    State(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// This shim does not do it.
    #[error("{0}")]
    Unimplemented(String),
    /// The VM is gone, or does not come up.
    #[error("{0}")]
    Unavailable(String),
    /// It took too long.
    #[error("{0}")]
    Deadline(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// The result of a call.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with all its causes.
    pub fn failed(error: &anyhow::Error) -> Error {
        Error::Failed(format!("{error:#}"))
    }

    fn code(&self) -> Code {
        match self {
            Error::NotFound(_) => Code::NOT_FOUND,
            Error::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Error::State(_) => Code::FAILED_PRECONDITION,
            Error::Invalid(_) => Code::INVALID_ARGUMENT,
            Error::Unimplemented(_) => Code::UNIMPLEMENTED,
            Error::Unavailable(_) => Code::UNAVAILABLE,
            Error::Deadline(_) => Code::DEADLINE_EXCEEDED,
            Error::Failed(_) => Code::UNKNOWN,
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), error.to_string()))
    }
}

impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Error>() {
            Ok(error) => error,
            Err(error) => Error::failed(&error),
        }
    }
}

/// Bytes of the request that can't be read as what they are to be.
pub fn invalid(what: &str, error: impl Display) -> Error {
    Error::Invalid(format!("{what}: {error}"))
}
