//! Encryption and authentication of connections to brokers.

use crate::kafka::KafkaError;
use rdkafka::{ClientConfig, producer::BaseProducer};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use std::{
    fs::File,
    path::{Path, PathBuf},
};

/// The mechanisms that the client is built with, and for which a name and a password are all it takes.
const SASL_MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];
/// The one that is taken if none is set.
const DEFAULT_SASL_MECHANISM: &str = "SCRAM-SHA-512";

const SASL_MECHANISM: &str = "kafka.sasl_mechanism (FLOODWAY_KAFKA__SASL_MECHANISM)";
const SASL_USERNAME: &str = "kafka.sasl_username (FLOODWAY_KAFKA__SASL_USERNAME)";
const SASL_PASSWORD: &str = "kafka.sasl_password (FLOODWAY_KAFKA__SASL_PASSWORD)";
const CA_FILE: &str = "kafka.ca_file (FLOODWAY_KAFKA__CA_FILE)";
const CERTIFICATE_FILE: &str = "kafka.certificate_file (FLOODWAY_KAFKA__CERTIFICATE_FILE)";
const KEY_FILE: &str = "kafka.key_file (FLOODWAY_KAFKA__KEY_FILE)";
const KEY_PASSWORD: &str = "kafka.key_password (FLOODWAY_KAFKA__KEY_PASSWORD)";

/// The section `[kafka]`: encryption and authentication of connections to brokers.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaSecurity {
    /// `FLOODWAY_KAFKA__SECURITY_PROTOCOL`: default `plaintext`.
    pub security_protocol: SecurityProtocol,
    /// `FLOODWAY_KAFKA__SASL_MECHANISM`: `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`; default `SCRAM-SHA-512`.
    pub sasl_mechanism: Option<String>,
    /// `FLOODWAY_KAFKA__SASL_USERNAME`
    pub sasl_username: Option<String>,
    /// `FLOODWAY_KAFKA__SASL_PASSWORD`
    pub sasl_password: Option<SecretString>,
    /// `FLOODWAY_KAFKA__CA_FILE`: PEM file of the authorities to trust; default the system's.
    pub ca_file: Option<PathBuf>,
    /// `FLOODWAY_KAFKA__CERTIFICATE_FILE`: PEM file of the certificate, and its chain, that brokers are shown.
    pub certificate_file: Option<PathBuf>,
    /// `FLOODWAY_KAFKA__KEY_FILE`: PEM file of that certificate's private key.
    pub key_file: Option<PathBuf>,
    /// `FLOODWAY_KAFKA__KEY_PASSWORD`: opens the private key, if it is encrypted.
    pub key_password: Option<SecretString>,
}

/// How connections to brokers are protected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecurityProtocol {
    /// Neither encrypted nor authenticated.
    #[default]
    Plaintext,
    /// TLS.
    Ssl,
    /// SASL without TLS.
    SaslPlaintext,
    /// SASL over TLS.
    SaslSsl,
}

impl SecurityProtocol {
    fn as_str(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Ssl => "ssl",
            Self::SaslPlaintext => "sasl_plaintext",
            Self::SaslSsl => "sasl_ssl",
        }
    }

    fn uses_sasl(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }

    fn uses_tls(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }
}

impl KafkaSecurity {
    /// Checks all that can be checked without a connection.
    pub(crate) fn validate(&self) -> Result<(), KafkaError> {
        self.validate_sasl()?;
        self.validate_tls()?;
        self.validate_files()
    }

    /// Gives a client these settings.
    pub(crate) fn apply(&self, config: &mut ClientConfig) {
        config.set("security.protocol", self.security_protocol.as_str());
        if self.security_protocol.uses_sasl() {
            self.apply_sasl(config);
        }
        if self.security_protocol.uses_tls() {
            // The client's default, said because all of TLS rests on it: the broker's certificate names its host.
            config.set("ssl.endpoint.identification.algorithm", "https");
            config.set("enable.ssl.certificate.verification", "true");
            self.apply_authorities(config);
            self.apply_certificate(config);
            self.apply_key(config);
        }
    }

    fn apply_sasl(&self, config: &mut ClientConfig) {
        config.set("sasl.mechanism", self.sasl_mechanism.as_deref().unwrap_or(DEFAULT_SASL_MECHANISM));
        if let Some(username) = &self.sasl_username {
            config.set("sasl.username", username);
        }
        if let Some(password) = &self.sasl_password {
            config.set("sasl.password", password.expose_secret());
        }
    }

    fn apply_authorities(&self, config: &mut ClientConfig) {
        if let Some(file) = &self.ca_file {
            config.set("ssl.ca.location", file.display().to_string());
        }
    }

    fn apply_certificate(&self, config: &mut ClientConfig) {
        if let Some(file) = &self.certificate_file {
            config.set("ssl.certificate.location", file.display().to_string());
        }
    }

    fn apply_key(&self, config: &mut ClientConfig) {
        if let Some(file) = &self.key_file {
            config.set("ssl.key.location", file.display().to_string());
        }
        if let Some(password) = &self.key_password {
            config.set("ssl.key.password", password.expose_secret());
        }
    }

    fn validate_sasl(&self) -> Result<(), KafkaError> {
        let known = |mechanism: &String| SASL_MECHANISMS.contains(&mechanism.as_str());
        if !self.sasl_mechanism.as_ref().is_none_or(known) {
            return refuse(SASL_MECHANISM, format!("must be one of {}", SASL_MECHANISMS.join(", ")));
        }
        let password = self.sasl_password.as_ref().map(|password| password.expose_secret());
        for (name, value) in [(SASL_USERNAME, self.sasl_username.as_deref()), (SASL_PASSWORD, password)] {
            match value {
                None | Some("") if self.security_protocol.uses_sasl() => {
                    return refuse(name, "is required by kafka.security_protocol");
                }
                // Whoever sets a password means to be authenticated.
                Some(_) if !self.security_protocol.uses_sasl() => {
                    return refuse(name, "needs kafka.security_protocol sasl_ssl or sasl_plaintext");
                }
                // A file's last line break, as often as not.
                Some(value) if value.contains(char::is_control) => {
                    return refuse(name, "must not have line breaks or other control characters");
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn validate_tls(&self) -> Result<(), KafkaError> {
        let set = [
            (CA_FILE, self.ca_file.is_some()),
            (CERTIFICATE_FILE, self.certificate_file.is_some()),
            (KEY_FILE, self.key_file.is_some()),
            (KEY_PASSWORD, self.key_password.is_some()),
        ];
        if !self.security_protocol.uses_tls()
            && let Some((name, _)) = set.into_iter().find(|(_, set)| *set)
        {
            return refuse(name, "needs kafka.security_protocol ssl or sasl_ssl");
        }
        match (&self.certificate_file, &self.key_file) {
            (Some(_), None) => refuse(KEY_FILE, "is required by kafka.certificate_file"),
            (None, Some(_)) => refuse(CERTIFICATE_FILE, "is required by kafka.key_file"),
            (None, None) if self.key_password.is_some() => {
                refuse(KEY_FILE, "is required by kafka.key_password")
            }
            _ => Ok(()),
        }
    }

    /// Each file is given to a client by itself first, so that the one it does not take is known by name.
    fn validate_files(&self) -> Result<(), KafkaError> {
        let mut config = ClientConfig::new();
        config.set("security.protocol", "ssl");
        type Apply = fn(&KafkaSecurity, &mut ClientConfig);
        let steps: [(&'static str, Option<&Path>, Apply); 3] = [
            (CA_FILE, self.ca_file.as_deref(), Self::apply_authorities),
            (CERTIFICATE_FILE, self.certificate_file.as_deref(), Self::apply_certificate),
            (KEY_FILE, self.key_file.as_deref(), Self::apply_key),
        ];
        for (name, file, apply) in steps {
            let Some(file) = file else { continue };
            if let Err(error) = File::open(file) {
                return refuse(name, error.to_string());
            }
            apply(self, &mut config);
            // A client connects only when it is asked for something; what it refuses, it refuses when it is created.
            if let Err(error) = config.create::<BaseProducer>() {
                return refuse(name, error.to_string());
            }
        }
        Ok(())
    }
}

fn refuse(name: &'static str, reason: impl Into<String>) -> Result<(), KafkaError> {
    Err(KafkaError::Setting { name, reason: reason.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(security: KafkaSecurity) -> String {
        security.validate().unwrap_err().to_string()
    }

    fn with(security_protocol: SecurityProtocol) -> KafkaSecurity {
        KafkaSecurity { security_protocol, ..KafkaSecurity::default() }
    }

    fn secret(text: &str) -> Option<SecretString> {
        Some(text.to_owned().into())
    }

    const NOT_PEM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");

    #[test]
    fn a_bad_setting_or_combination_is_refused_by_its_name_and_without_its_value() {
        use SecurityProtocol::{Plaintext, SaslPlaintext, SaslSsl, Ssl};
        type Spoil = fn(&mut KafkaSecurity);
        let table: [(SecurityProtocol, Spoil, &str, &str); 15] = [
            (
                SaslSsl,
                |s| s.sasl_mechanism = Some("hunter2".to_owned()),
                SASL_MECHANISM,
                "must be one of PLAIN",
            ),
            (SaslPlaintext, |_| (), SASL_USERNAME, "is required by"),
            (SaslSsl, |s| s.sasl_username = Some("floodway".to_owned()), SASL_PASSWORD, "is required by"),
            (SaslSsl, |s| s.sasl_username = Some("flood\nway".to_owned()), SASL_USERNAME, "must not have"),
            (
                SaslSsl,
                |s| (s.sasl_username, s.sasl_password) = (Some("u".to_owned()), secret("hunter2\n")),
                SASL_PASSWORD,
                "must not have line breaks",
            ),
            (
                Plaintext,
                |s| s.sasl_password = secret("hunter2"),
                SASL_PASSWORD,
                "needs kafka.security_protocol",
            ),
            (
                Ssl,
                |s| s.sasl_username = Some("hunter2".to_owned()),
                SASL_USERNAME,
                "needs kafka.security_protocol",
            ),
            (Plaintext, |s| s.ca_file = Some(NOT_PEM.into()), CA_FILE, "needs kafka.security_protocol"),
            (
                Plaintext,
                |s| s.key_password = secret("hunter2"),
                KEY_PASSWORD,
                "needs kafka.security_protocol",
            ),
            (
                Ssl,
                |s| s.certificate_file = Some(NOT_PEM.into()),
                KEY_FILE,
                "is required by kafka.certificate_file",
            ),
            (Ssl, |s| s.key_file = Some(NOT_PEM.into()), CERTIFICATE_FILE, "is required by kafka.key_file"),
            (Ssl, |s| s.key_password = secret("hunter2"), KEY_FILE, "is required by kafka.key_password"),
            (Ssl, |s| s.ca_file = Some("/nowhere.pem".into()), CA_FILE, "No such file"),
            (Ssl, |s| s.ca_file = Some(NOT_PEM.into()), CA_FILE, ""),
            (
                Ssl,
                |s| (s.certificate_file, s.key_file) = (Some(NOT_PEM.into()), Some(NOT_PEM.into())),
                CERTIFICATE_FILE,
                "",
            ),
        ];
        for (protocol, spoil, name, reason) in table {
            let mut security = with(protocol);
            spoil(&mut security);
            let error = refusal(security);
            assert!(error.starts_with(&format!("setting {name}: {reason}")), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn complete_settings_of_every_protocol_are_taken() {
        for protocol in [SecurityProtocol::Plaintext, SecurityProtocol::Ssl] {
            with(protocol).validate().unwrap();
        }
        for protocol in [SecurityProtocol::SaslPlaintext, SecurityProtocol::SaslSsl] {
            let sasl_username = Some("floodway".to_owned());
            KafkaSecurity { sasl_username, sasl_password: secret("hunter2"), ..with(protocol) }
                .validate()
                .unwrap();
        }
    }

    #[test]
    fn secrets_are_not_in_the_debug_form() {
        let security = KafkaSecurity {
            sasl_password: secret("hunter2"),
            key_password: secret("hunter2"),
            ..KafkaSecurity::default()
        };
        assert!(!format!("{security:?}").contains("hunter2"));
    }
}
