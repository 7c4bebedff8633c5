//! A file that cannot be used, and which one.

use std::path::{Path, PathBuf};
use thiserror::Error;

/// A file cannot be read or written.
#[derive(Debug, Error)]
#[error("{}: {reason}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: std::io::Error,
}

impl FileError {
    /// What is wrong with the file at `path`.
    pub fn at(path: &Path, reason: std::io::Error) -> Self {
        Self { path: path.to_owned(), reason }
    }
}
