//! What the demo creates through the public API: a tenant, three subscriptions and a key; and how it knows that
//! they are in effect.

use super::DemoError;
use crate::{
    admin_client::{AdminClient, NewSubscription, RetryPolicy},
    receive::{Receiver, ledger::Totals},
    send::{SendError, SendPlan, payload::Payload, record::SendRecord, send},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Waits between the attempts of a delivery, in seconds.
const DELAYS_SECONDS: [f64; 3] = [1.0, 2.0, 3.0];
const JITTER: f64 = 0.2;
/// Attempts after which a delivery is dead.
const ATTEMPTS: u32 = DELAYS_SECONDS.len() as u32 + 1;
/// Age after which a delivery is dead even if attempts are left, because its endpoint was busy or its circuit open.
/// Below the demo's own deadline, so that every delivery ends within it.
const MAX_AGE_SECONDS: f64 = 180.0;
/// The types of the sample events, see [`crate::send::payload::SAMPLE_TYPES`].
const PATTERNS: [&str; 3] = ["order.*", "invoice.*", "customer.*"];
/// Type of the events that only find out whether the configuration is in effect.
const PROBE_TYPE: &str = "demo.probe";
const PROBE_PAUSE: Duration = Duration::from_millis(200);
/// How long the configuration may take to be in effect everywhere.
const PROBE_DEADLINE: Duration = Duration::from_secs(60);

/// One subscription of the demo.
#[derive(Debug, Clone)]
pub struct DemoSubscription {
    /// Name in the table.
    pub name: &'static str,
    /// Its id.
    pub id: String,
    /// Its path at the receiver.
    pub path: String,
    /// Failed attempts that are to be expected for each event; more are repeats.
    pub failures: u32,
}

/// What was created.
#[derive(Debug, Clone)]
pub struct Provision {
    /// Id of the tenant.
    pub tenant: String,
    /// Its API key.
    pub api_key: String,
    /// `healthy`, `flaky` and `dead`.
    pub subscriptions: Vec<DemoSubscription>,
}

/// Creates everything, and tells the receiver the secrets. Returns once events of the key reach subscriptions.
pub async fn provision(
    admin: &AdminClient,
    ingest_url: &str,
    receiver: &Receiver,
    run: &str,
) -> Result<Provision, DemoError> {
    let tenant = admin.create_tenant(&format!("demo {run}")).await?;
    let mut subscriptions = Vec::new();
    for (name, behaviour, failures) in
        [("healthy", "/ok", 0), ("flaky", "/fail/2", 2), ("dead", "/status/500", ATTEMPTS)]
    {
        let path = format!("{behaviour}/{name}-{run}");
        let id = subscribe(admin, &tenant, receiver, name, &path, &PATTERNS).await?;
        subscriptions.push(DemoSubscription { name, id, path, failures });
    }
    // Configuration takes effect in the order in which it was made: once the probe's subscription works, which is
    // younger than the others, so do they.
    let probe_path = format!("/ok/probe-{run}");
    let probe = subscribe(admin, &tenant, receiver, "probe", &probe_path, &[PROBE_TYPE]).await?;
    let api_key = admin.create_api_key(&tenant, "demo").await?.key;
    probe_until_delivered(ingest_url, &api_key, receiver, &probe_path, run).await?;
    admin.delete_subscription(&tenant, &probe).await?;
    Ok(Provision { tenant, api_key, subscriptions })
}

async fn subscribe(
    admin: &AdminClient,
    tenant: &str,
    receiver: &Receiver,
    name: &str,
    path: &str,
    types: &[&str],
) -> Result<String, DemoError> {
    let new = NewSubscription {
        name: name.to_owned(),
        url: receiver.url(path),
        types: types.iter().map(|&pattern| pattern.to_owned()).collect(),
        retry: Some(RetryPolicy {
            delays_seconds: DELAYS_SECONDS.to_vec(),
            jitter: JITTER,
            max_age_seconds: MAX_AGE_SECONDS,
        }),
        history: Some("all"),
        ..NewSubscription::default()
    };
    let created = admin.create_subscription(tenant, &new).await?;
    receiver.set_secrets(path, &[&created.secret])?;
    Ok(created.id)
}

/// Sends probes until one arrives. The first ones may be refused, while ingest does not know the key yet, or match
/// nothing, while the dispatcher does not know the subscription.
async fn probe_until_delivered(
    ingest_url: &str,
    key: &str,
    receiver: &Receiver,
    path: &str,
    run: &str,
) -> Result<(), DemoError> {
    let plan = SendPlan {
        url: ingest_url.to_owned(),
        key: key.to_owned(),
        payload: Payload::Sized { event_type: PROBE_TYPE.to_owned(), bytes: 32 },
        tries: 1,
        timeout: Duration::from_secs(15),
        ..SendPlan::default()
    };
    let deadline = Instant::now() + PROBE_DEADLINE;
    let mut last = "no probe was sent".to_owned();
    for number in 0u64.. {
        if Instant::now() >= deadline {
            break;
        }
        let record = Arc::new(SendRecord::new(format!("{run}-probe-{number}"), 1));
        match send(&plan, &record, &CancellationToken::new()).await {
            Ok(report) => last = format!("{:?}", report.tally),
            Err(error @ SendError::Unauthorized(_)) => last = error.to_string(),
            Err(error) => return Err(error.into()),
        }
        let arrived = |totals: Totals| totals.delivered + totals.invalid_signatures > 0;
        if receiver.wait_until(PROBE_PAUSE, |ledger| arrived(ledger.totals(path))).await {
            let refused = receiver.ledger().totals(path).delivered == 0;
            return if refused { Err(DemoError::Signature) } else { Ok(()) };
        }
    }
    Err(DemoError::NotInEffect { seconds: PROBE_DEADLINE.as_secs(), last })
}
