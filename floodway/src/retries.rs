//! The operator's commands about pending retries: look at them, make them now, cancel them.
//!
//! Looking reads the database. What is to change them goes through Kafka, as the control plane's requests do, so it needs no scheduler to
//! be up at that moment and cannot disagree with one that is.

use crate::{config::Settings, error::Error, operate::store_error, table::table};
use clap::{Args, Subcommand};
use floodway_runtime::{clock, retry_commands::RetryCommands};
use floodway_schemas::{
    UnixMillis,
    due::RetryKey,
    ids::{RetryCommandId, SubscriptionId, TenantId},
    retry_command::{RETRY_COMMAND_VERSION, RetryAction, RetryCommand, RetryScope},
};
use floodway_store::{
    mark_bounds,
    pending_retries::{self, MAX_COUNTED, PendingDelivery, PendingFilter, ShardStats},
};
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal, Write};
use uuid::Uuid;

/// Pending retries that are counted before a command is confirmed.
const MAX_PREVIEW: usize = 10_000;

#[derive(Debug, Subcommand)]
pub(crate) enum RetriesCommand {
    /// Show what each shard of the retry scheduler has to do
    Stats(Output),
    /// List pending retries, soonest first
    Due(Due),
    /// Make pending retries now, in the order in which they came
    Now(Change),
    /// Cancel pending retries: they are never delivered
    Cancel(Change),
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Output {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Due {
    /// Of this tenant
    #[arg(long)]
    tenant: Option<TenantId>,
    /// To this subscription
    #[arg(long)]
    subscription: Option<SubscriptionId>,
    /// Of the event with this id; a batch goes by its own
    #[arg(long)]
    event_id: Option<String>,
    /// How many
    #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Change {
    /// Whose retries
    #[arg(long)]
    tenant: TenantId,
    #[command(flatten)]
    which: Which,
    /// Count only, change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

/// Which of the tenant's: those that fit all of these
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Which {
    /// To this subscription
    #[arg(long)]
    subscription: Option<SubscriptionId>,
    /// Of the event with this id; a batch goes by its own
    #[arg(long)]
    event_id: Option<String>,
    /// This one, as the list shows it: <shard>-<offset>
    #[arg(long)]
    id: Option<RetryKey>,
}

/// Runs one command to its end.
pub(crate) async fn execute(command: RetriesCommand, settings: &Settings) -> Result<(), Error> {
    match command {
        RetriesCommand::Stats(output) => stats(settings, output).await,
        RetriesCommand::Due(due) => list(settings, due).await,
        RetriesCommand::Now(change) => give(settings, RetryAction::Now, change).await,
        RetriesCommand::Cancel(change) => give(settings, RetryAction::Cancel, change).await,
    }
}

async fn stats(settings: &Settings, output: Output) -> Result<(), Error> {
    let pool = settings.database_pool("floodway-retries", 1)?;
    let client = pool.get().await.map_err(store_error)?;
    let stats = pending_retries::stats(&client).await.map_err(store_error)?;
    if output.json {
        return print_json(&json!({ "shards": stats.iter().map(stats_json).collect::<Vec<_>>() }));
    }
    let now = clock::now();
    let rows: Vec<Vec<String>> = stats.iter().map(|shard| stats_row(shard, now)).collect();
    let headings =
        ["shard", "pending", "next due", "last due", "cursor lag", "recalls", "next offset", "owner"];
    let all: i64 = stats.iter().map(|shard| shard.pending).sum();
    let is_all = stats.iter().all(|shard| shard.pending < MAX_COUNTED);
    print(&format!(
        "{}\n{} pending in {} shards\n",
        table(&headings, &rows),
        counted(all, is_all),
        stats.len()
    ))
}

fn stats_row(shard: &ShardStats, now: UnixMillis) -> Vec<String> {
    vec![
        shard.shard.to_string(),
        counted(shard.pending, shard.pending < MAX_COUNTED),
        shard.next_due.map_or_else(none, |at| relative(at, now)),
        shard.last_due.map_or_else(none, |at| relative(at, now)),
        format!("{:.1} s", shard.cursor_lag.as_secs_f64()),
        shard.recalls.to_string(),
        shard.next_offset.to_string(),
        shard.owner.clone(),
    ]
}

fn stats_json(shard: &ShardStats) -> Value {
    json!({
        "shard": shard.shard,
        "owner": shard.owner,
        "next_offset": shard.next_offset,
        "pending": shard.pending,
        "pending_is_complete": shard.pending < MAX_COUNTED,
        "next_due": shard.next_due.map(UnixMillis::to_rfc3339),
        "last_due": shard.last_due.map(UnixMillis::to_rfc3339),
        "cursor_lag_seconds": shard.cursor_lag.as_secs_f64(),
        "recalls": shard.recalls,
    })
}

async fn list(settings: &Settings, due: Due) -> Result<(), Error> {
    let Due { tenant, subscription, event_id, limit, output } = due;
    let filter = PendingFilter { tenant, subscription, event_id };
    let (found, is_all) = find(settings, &filter, limit as usize).await?;
    if output.json {
        let items: Vec<Value> = found.iter().map(pending_json).collect();
        return print_json(&json!({ "items": items, "complete": is_all }));
    }
    let now = clock::now();
    let rows: Vec<Vec<String>> = found.iter().map(|pending| pending_row(pending, now)).collect();
    let headings = ["id", "due", "attempt", "event", "subscription", "tenant"];
    let more = if is_all { "" } else { "\nThere are more.\n" };
    print(&format!("{}{more}", table(&headings, &rows)))
}

fn pending_row(pending: &PendingDelivery, now: UnixMillis) -> Vec<String> {
    vec![
        pending.place.key().to_string(),
        relative(pending.place.due.to_millis(), now),
        pending.attempt.to_string(),
        pending.event_id.clone(),
        pending.subscription.to_string(),
        pending.tenant.to_string(),
    ]
}

fn pending_json(pending: &PendingDelivery) -> Value {
    json!({
        "id": pending.place.key().to_string(),
        "due_at": pending.place.due.to_millis().to_rfc3339(),
        "attempt": pending.attempt,
        "event_id": pending.event_id,
        "subscription": pending.subscription,
        "tenant": pending.tenant,
    })
}

/// Up to `limit` pending retries, and whether these are all. A page may be short where looking on takes long; a command can wait.
async fn find(
    settings: &Settings,
    filter: &PendingFilter,
    limit: usize,
) -> Result<(Vec<PendingDelivery>, bool), Error> {
    let pool = settings.database_pool("floodway-retries", 1)?;
    let client = pool.get().await.map_err(store_error)?;
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let page =
            pending_retries::list(&client, filter, cursor, limit - found.len()).await.map_err(store_error)?;
        found.extend(page.items);
        // What the store gave out it reads.
        cursor = page.next_cursor.and_then(|next| next.parse().ok());
        if cursor.is_none() || found.len() >= limit {
            return Ok((found, cursor.is_none()));
        }
    }
}

async fn give(settings: &Settings, action: RetryAction, change: Change) -> Result<(), Error> {
    let Change { tenant, which: Which { subscription, event_id, id }, dry_run, yes, output } = change;
    let scope = RetryScope { subscription, event_id: event_id.clone(), retry: id };
    if !scope.is_valid() {
        return Err(Error::Failed("--event-id is nothing that an event could have".to_owned()));
    }
    let kafka = settings.kafka()?;
    let command = RetryCommandId(Uuid::now_v7());
    let record = RetryCommand { v: RETRY_COMMAND_VERSION, command, action, tenant, scope, at: clock::now() };
    if dry_run || !yes {
        let filter = PendingFilter { tenant: Some(tenant), subscription, event_id };
        let (count, is_all) = match id {
            Some(_) => (1, true),
            None => {
                find(settings, &filter, MAX_PREVIEW).await.map(|(found, is_all)| (found.len(), is_all))?
            }
        };
        if dry_run && output.json {
            return print_json(&json!({ "action": action, "count": count, "complete": is_all }));
        }
        let count = counted(i64::try_from(count).unwrap_or(i64::MAX), is_all);
        if dry_run {
            return print(&format!(
                "{} is about {count} pending retries; nothing was changed\n",
                action.as_str()
            ));
        }
        confirm(action, &count)?;
    }
    refuse_beyond_bounds(settings, &record).await?;
    let commands = RetryCommands::new(&kafka).map_err(Error::settings)?;
    let partitions = commands.send(&record).await.map_err(|error| {
        Error::Unavailable(format!("Kafka does not take the command, try again: {error}"))
    })?;
    if partitions == 0 {
        return Err(Error::Failed("there is no such shard".to_owned()));
    }
    if output.json {
        return print_json(&json!({ "command_id": command, "action": action, "shards": partitions }));
    }
    print(&format!("command {command} ({}) was given to {partitions} shards\n", action.as_str()))
}

/// A command that its readers would pass over is not given. Without the database nobody knows, and Kafka takes it all the same.
async fn refuse_beyond_bounds(settings: &Settings, command: &RetryCommand) -> Result<(), Error> {
    let full = async {
        let client = settings.database_pool("floodway-retries", 1).ok()?.get().await.ok()?;
        mark_bounds::full_for(&client, command).await.ok()?
    };
    full.await.map_or(Ok(()), |full| Err(Error::Failed(full.to_string())))
}

/// Asks on the terminal; without one, `--yes` has to be given.
fn confirm(action: RetryAction, count: &str) -> Result<(), Error> {
    let what = match action {
        RetryAction::Now => format!("Make {count} pending retries now?"),
        RetryAction::Cancel => format!("Cancel {count} pending retries for good?"),
    };
    if !std::io::stdin().is_terminal() {
        return Err(Error::Failed(format!("{what} Say --yes to confirm it")));
    }
    print(&format!("{what} [y/N] "))?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(Error::Failed("not confirmed".to_owned()))
    }
}

fn counted(n: i64, is_all: bool) -> String {
    let digits = n.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if is_all { grouped } else { format!("≥ {grouped}") }
}

fn none() -> String {
    "–".to_owned()
}

/// An instant as people say it: how far off it is.
fn relative(at: UnixMillis, now: UnixMillis) -> String {
    let (seconds, is_past) = ((at.0 - now.0).unsigned_abs() / 1_000, at < now);
    let far = match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    };
    if is_past { format!("{far} ago") } else { format!("in {far}") }
}

fn print_json(value: &Value) -> Result<(), Error> {
    print(&format!("{value:#}\n"))
}

/// To standard output. A reader that has gone, as `head` does, is no failure.
fn print(text: &str) -> Result<(), Error> {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_instants_are_told_as_people_say_them() {
        assert_eq!((counted(0, true), counted(999, true)), ("0".into(), "999".into()));
        assert_eq!(
            (counted(1_234_567, true), counted(10_000, false)),
            ("1,234,567".into(), "≥ 10,000".into())
        );
        let now = UnixMillis(1_000_000_000);
        for (seconds, told) in
            [(5, "in 5 s"), (-5, "5 s ago"), (600, "in 10 min"), (7_200, "in 2 h"), (-400_000, "4 days ago")]
        {
            assert_eq!(relative(UnixMillis(now.0 + seconds * 1_000), now), told);
        }
    }
}
