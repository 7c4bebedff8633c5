//! How the process fails: one line on standard error, and an exit code that says whose move it is.

use std::{io, process::ExitCode};
use thiserror::Error;

/// `EX_CONFIG` of sysexits: a setting is missing or wrong.
const CONFIGURATION: u8 = 78;
/// `EX_UNAVAILABLE` of sysexits: a server does not answer.
const UNAVAILABLE: u8 = 69;

#[derive(Debug, Error)]
pub(crate) enum Error {
    /// A setting, or what it points to, must be changed before a start can succeed.
    #[error("{0}")]
    Settings(String),
    /// A server does not answer: start again when it does.
    #[error("{0}")]
    Unavailable(String),
    /// The operating system refused something.
    #[error("{0}")]
    Runtime(#[from] io::Error),
    /// A role ended although nobody asked it to.
    #[error("{role} failed: {reason}")]
    Role {
        /// The role's name.
        role: &'static str,
        /// Its own error.
        reason: String,
    },
    /// An operator's command did not succeed.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// Any error that means "change the settings".
    pub(crate) fn settings(error: impl ToString) -> Self {
        Self::Settings(error.to_string())
    }

    /// A required setting is absent.
    pub(crate) fn missing(setting: &str, form: &str) -> Self {
        Self::Settings(format!("setting {setting}: is required: {form}"))
    }

    /// Writes one line to standard error.
    #[allow(
        clippy::print_stderr,
        reason = "the one line that a failed start leaves, whatever the log filter"
    )]
    pub(crate) fn report(&self) {
        eprintln!("floodway: {self}");
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Settings(_) => ExitCode::from(CONFIGURATION),
            Self::Unavailable(_) => ExitCode::from(UNAVAILABLE),
            Self::Runtime(_) | Self::Role { .. } | Self::Failed(_) => ExitCode::FAILURE,
        }
    }
}
