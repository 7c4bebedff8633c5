//! Settings from a TOML file, each overridden by a `FLOODWAY_*` variable.
//!
//! `FLOODWAY_INGEST__LISTEN` overrides `listen` in the section `[ingest]`; lists are written as in TOML. Unknown keys are
//! refused, so a misspelt setting never goes unnoticed.

use figment::{
    Figment,
    error::{Actual, Kind},
    providers::{Env, Format, Toml},
};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use thiserror::Error;

const ENV_PREFIX: &str = "FLOODWAY_";

/// Settings that cannot be used. One line, naming the setting and never quoting a value, which may be a secret.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// The file named on the command line is not there.
    #[error("settings file {} cannot be read: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
    /// A setting is unknown, missing, or has the wrong form.
    #[error("setting {setting}: {reason}")]
    Invalid {
        /// Path in the file and name of the variable.
        setting: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads `file`, if one is given, and the environment into `T`.
pub fn load<T: DeserializeOwned>(file: Option<&Path>) -> Result<T, SettingsError> {
    let mut figment = Figment::new();
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|error| SettingsError::Unreadable {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        figment = figment.merge(Toml::string(&text));
    }
    figment = figment.merge(Env::prefixed(ENV_PREFIX).split("__"));
    figment.extract().map_err(|error| describe(&error))
}

fn describe(error: &figment::Error) -> SettingsError {
    let (name, reason) = match &error.kind {
        Kind::UnknownField(field, known) => {
            (Some(field.clone()), format!("unknown; known here are: {}", known.join(", ")))
        }
        Kind::MissingField(field) => (Some(field.to_string()), "is required".to_owned()),
        // The value itself stays out of the message.
        Kind::InvalidType(
            Actual::Bool(_) | Actual::Unsigned(_) | Actual::Signed(_) | Actual::Float(_),
            expected,
        ) if expected.to_string().contains("string") => (
            None,
            format!("must be {expected}: put it in double quotes, or it reads as a number or a boolean"),
        ),
        Kind::InvalidType(_, expected) => (None, format!("must be {expected}")),
        Kind::InvalidValue(_, expected) => (None, format!("must be {expected}")),
        Kind::InvalidLength(_, expected) => (None, format!("must have {expected}")),
        Kind::UnknownVariant(_, known) => (None, format!("must be one of: {}", known.join(", "))),
        other => (None, other.to_string()),
    };
    let mut path = error.path.clone();
    if path.last() != name.as_ref() {
        path.extend(name);
    }
    if path.is_empty() {
        return SettingsError::Invalid { setting: "file".to_owned(), reason };
    }
    SettingsError::Invalid { setting: format!("{} ({})", path.join("."), variable(&path)), reason }
}

fn variable(path: &[String]) -> String {
    format!("{ENV_PREFIX}{}", path.join("__").to_uppercase())
}

#[cfg(test)]
#[allow(clippy::result_large_err, reason = "figment's test jail dictates the error type")]
mod tests {
    use super::*;
    use figment::Jail;
    use serde::Deserialize;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        brokers: String,
        ingest: Section,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Section {
        workers: u16,
        networks: Vec<String>,
    }

    #[test]
    fn a_variable_overrides_the_file() {
        Jail::expect_with(|jail| {
            jail.clear_env();
            jail.create_file("f.toml", "brokers = \"a:1\"\n[ingest]\nworkers = 2\n")?;
            jail.set_env("FLOODWAY_INGEST__WORKERS", "3");
            jail.set_env("FLOODWAY_INGEST__NETWORKS", "[\"127.0.0.0/8\"]");
            let sample: Sample = load(Some(Path::new("f.toml"))).unwrap();
            assert_eq!((sample.brokers.as_str(), sample.ingest.workers), ("a:1", 3));
            assert_eq!(sample.ingest.networks, ["127.0.0.0/8"]);
            Ok(())
        });
    }

    #[test]
    fn a_bad_setting_is_named_with_its_variable_and_without_its_value() {
        let table = [
            (
                "FLOODWAY_INGEST__WORKERS",
                "hunter2",
                "setting ingest.workers (FLOODWAY_INGEST__WORKERS): must be u16",
            ),
            (
                "FLOODWAY_INGEST__WORKER",
                "2",
                "setting ingest.worker (FLOODWAY_INGEST__WORKER): unknown; known here are",
            ),
            (
                "FLOODWAY_BROKERS",
                "17",
                "setting brokers (FLOODWAY_BROKERS): must be a string: put it in double quotes",
            ),
            ("FLOODWAY_BROKER", "x", "setting broker (FLOODWAY_BROKER): unknown"),
        ];
        for (variable, value, expected) in table {
            Jail::expect_with(|jail| {
                jail.clear_env();
                jail.set_env(variable, value);
                let error = load::<Sample>(None).unwrap_err().to_string();
                assert!(error.starts_with(expected), "{error}");
                assert!(!error.contains("hunter2"), "{error}");
                Ok(())
            });
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load::<Sample>(Some(Path::new("no-such.toml"))).unwrap_err().to_string();
        assert!(error.starts_with("settings file no-such.toml cannot be read"), "{error}");
    }
}
