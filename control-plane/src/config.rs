//! The section `[control_plane]`.

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use std::{net::SocketAddr, time::Duration};

/// Shortest admin key, in bytes: whoever holds it owns the installation, so it is not to be guessed.
pub const MIN_ADMIN_KEY_BYTES: usize = 16;

/// How the control plane runs.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `FLOODWAY_CONTROL_PLANE__LISTEN`: address of the REST interface; default `127.0.0.1:8081`.
    pub listen: SocketAddr,
    /// `FLOODWAY_CONTROL_PLANE__ADMIN_KEY`: what clients present as `Authorization: Bearer …`, at least 16 bytes;
    /// required, there is no default.
    pub admin_key: Option<SecretString>,
    /// `FLOODWAY_CONTROL_PLANE__ALLOWED_NETWORKS`: networks in CIDR form that subscriptions may deliver to although they
    /// are private, loopback or otherwise special, such as `["127.0.0.0/8"]` for a local stack; default none. The
    /// dispatcher has a setting of its own, and the last word.
    pub allowed_networks: Vec<IpNet>,
    /// `FLOODWAY_CONTROL_PLANE__PUBLISH_DEADLINE`: how long a change waits for its publication before it is answered
    /// with 202; default `5s`.
    #[serde(with = "humantime_serde")]
    pub publish_deadline: Duration,
    /// `FLOODWAY_CONTROL_PLANE__DRAIN_TIMEOUT`: how long requests in progress may take once the process is to end;
    /// default `10s`.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// `FLOODWAY_CONTROL_PLANE__MAX_BODY_BYTES`: largest request body; default 256 KiB, which holds the largest
    /// subscription and a request to replay 1,000 dead letters.
    pub max_body_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8081)),
            admin_key: None,
            allowed_networks: Vec::new(),
            publish_deadline: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(10),
            max_body_bytes: 256 * 1024,
        }
    }
}

impl Settings {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// A message that names the setting, and quotes no value.
    pub fn validate(&self) -> Result<(), String> {
        let long_enough = |key: &SecretString| key.expose_secret().len() >= MIN_ADMIN_KEY_BYTES;
        if !self.admin_key.as_ref().is_some_and(long_enough) {
            return Err(format!(
                "control_plane.admin_key (FLOODWAY_CONTROL_PLANE__ADMIN_KEY): required, at least \
                 {MIN_ADMIN_KEY_BYTES} bytes; for example the output of `openssl rand -hex 32`"
            ));
        }
        if self.publish_deadline.is_zero() || self.publish_deadline > Duration::from_secs(25) {
            return Err(
                "control_plane.publish_deadline (FLOODWAY_CONTROL_PLANE__PUBLISH_DEADLINE): must be from \
                        above 0 to 25s, the time that clients can be expected to wait"
                    .to_owned(),
            );
        }
        if !(1_024..=16 * 1024 * 1024).contains(&self.max_body_bytes) {
            return Err(
                "control_plane.max_body_bytes (FLOODWAY_CONTROL_PLANE__MAX_BODY_BYTES): must be from 1 KiB \
                        to 16 MiB"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_short_admin_key_is_refused_by_the_name_of_its_variable() {
        for admin_key in [None, Some("short".into())] {
            let error = Settings { admin_key, ..Settings::default() }.validate().unwrap_err();
            assert!(error.contains("FLOODWAY_CONTROL_PLANE__ADMIN_KEY"), "{error}");
            assert!(!error.contains("short"), "{error}");
        }
        let settings = Settings { admin_key: Some("sixteen-bytes-ok".into()), ..Settings::default() };
        assert_eq!(settings.validate(), Ok(()));
    }
}
