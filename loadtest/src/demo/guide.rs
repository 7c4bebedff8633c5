//! What to try while the demo stays up: URLs and commands that can be pasted as they are.

use super::{environment::Listeners, provision::Provision};
use crate::receive::{LEDGER_PATH, Receiver};

/// Everything the commands need.
pub struct Guide<'a> {
    /// Where Floodway listens.
    pub listeners: Listeners,
    /// The receiver, which is also an endpoint for the user's own subscriptions.
    pub receiver: &'a Receiver,
    /// What was created.
    pub provision: &'a Provision,
    /// The control plane's key, which is of this run only.
    pub admin_key: &'a str,
    /// A dead letter to replay.
    pub dead_letter: Option<&'a str>,
}

impl Guide<'_> {
    /// The text.
    pub fn text(&self) -> String {
        let Listeners { ingest, control_plane, admin } = self.listeners;
        let Provision { tenant, api_key, .. } = self.provision;
        let api = format!("http://{control_plane}/v1/tenants/{tenant}");
        let as_admin = format!("-H 'Authorization: Bearer {}'", self.admin_key);
        let json = "-H 'Content-Type: application/json'";
        let endpoint = self.receiver.url("/ok/mine");
        let ledger = self.receiver.url(LEDGER_PATH);
        let dead_letter = self.dead_letter.unwrap_or("ID");
        format!(
            r#"
Floodway is up:
  ingest         http://{ingest}/v1/events
  control plane  http://{control_plane}/v1/openapi.json
  health         http://{admin}/health/detailed
  metrics        http://{admin}/metrics
  receiver       {ledger}

Send an event of your own:
  curl -sS http://{ingest}/v1/events -H 'Authorization: Bearer {api_key}' {json} -d '{{"type":"order.created","data":{{"hello":"world"}}}}'

Add an endpoint of your own (this one is the demo's receiver):
  curl -sS {api}/subscriptions {as_admin} {json} -d '{{"name":"mine","url":"{endpoint}","types":["order.*"]}}'

List the latest deliveries:
  curl -sS '{api}/deliveries?limit=5' {as_admin}

List dead letters, and replay one:
  curl -sS '{api}/dead-letters?limit=5' {as_admin}
  curl -sS -X POST {api}/dead-letters/{dead_letter}/replay {as_admin}

Ctrl-C ends everything.
"#
        )
    }
}
