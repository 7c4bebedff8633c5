//! Which deliveries may be made twice, and which were.
//!
//! A delivery may be repeated only when its partition went from one process to another, and no commit covered its record by then. When
//! and to whom partitions went is in the dispatchers' logs; what was covered, a [`crate::progress::Watch`] saw.

use crate::{
    pipeline::Pipeline,
    progress::{Look, Place},
    reconcile::arrivals,
    topic_reader::{Record, due_records, records},
};
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, HashMap};

/// A process that was killed, and when.
#[derive(Debug, Clone)]
pub struct Kill {
    /// Its place among the dispatchers.
    pub dispatcher: usize,
    /// When it was dead, as [`crate::progress::now`] says it.
    pub at: String,
}

/// A partition that was consumed by one process, and then by the next one.
#[derive(Debug, Clone)]
struct Takeover {
    place: Place,
    /// When the next one had it.
    at: String,
    /// When the last one stopped: at its death, or, living on, as late as the next one began.
    until: String,
    after_kill: bool,
}

/// Repeats, and how many there could have been.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repeats {
    /// Partitions that went to another process because theirs was killed.
    pub takeovers_after_kills: usize,
    /// Partitions that went to another process otherwise.
    pub other_takeovers: usize,
    /// Deliveries that were open when their partition was taken over.
    pub at_most: usize,
    /// Successes beyond the first.
    pub counted: usize,
}

/// Holds the successes on each path against what may have been repeated. `paths` are the receiver's with their subscriptions;
/// `logs` are those of the dispatchers.
///
/// # Errors
/// When a delivery was repeated that a commit had covered, or that nobody had taken over.
pub async fn repeats(
    pipeline: &Pipeline,
    paths: &[(&str, &str)],
    logs: &[String],
    kills: &[Kill],
    looks: &[Look],
) -> Result<Repeats> {
    let takeovers = takeovers(logs, kills);
    let places = Places::read(pipeline).await?;
    let mut result = Repeats {
        takeovers_after_kills: takeovers.iter().filter(|takeover| takeover.after_kill).count(),
        ..Repeats::default()
    };
    result.other_takeovers = takeovers.len() - result.takeovers_after_kills;
    // By subscription and event: how often it was open at a takeover.
    let mut open: HashMap<(&str, &str), usize> = HashMap::new();
    for takeover in &takeovers {
        for record in open_at(takeover, looks, &places)? {
            let of =
                |subscription: &&str| record.subscription.as_deref().is_none_or(|one| one == *subscription);
            for subscription in paths.iter().map(|(_, subscription)| *subscription).filter(of) {
                *open.entry((subscription, record.id.as_str())).or_default() += 1;
            }
        }
    }
    result.at_most = open.values().sum();
    for (path, subscription) in paths {
        for (id, entry) in arrivals(pipeline, path) {
            let repeated = entry.successes.saturating_sub(1) as usize;
            let allowed = open.get(&(*subscription, id.as_str())).copied().unwrap_or(0);
            ensure!(
                repeated <= allowed,
                "{id} was repeated {repeated} times on {path} and was open at {allowed} of these: {takeovers:#?}"
            );
            result.counted += repeated;
        }
    }
    Ok(result)
}

/// Where everything lies.
struct Places(HashMap<&'static str, Vec<Record>>);

impl Places {
    async fn read(pipeline: &Pipeline) -> Result<Self> {
        let brokers = pipeline.stack.brokers.clone();
        let (events, due) = (pipeline.topic("events"), pipeline.topic("due"));
        tokio::task::spawn_blocking(move || {
            let places = [("events", records(&brokers, &events)?), ("due", due_records(&brokers, &due)?)];
            Ok(Self(places.into()))
        })
        .await?
    }

    fn on(&self, topic: &str) -> &[Record] {
        self.0.get(topic).map_or(&[], Vec::as_slice)
    }
}

/// The records that no commit covered when their partition was taken over, as far as there were any by the time that its last owner
/// stopped. Looks are not continuous: the last one before, and the first one after, say rather more.
fn open_at<'a>(takeover: &Takeover, looks: &[Look], places: &'a Places) -> Result<Vec<&'a Record>> {
    let (topic, partition) = takeover.place;
    let before = looks.iter().rfind(|look| look.ended < takeover.at);
    let committed = before.and_then(|look| look.committed.get(&takeover.place));
    let after = looks.iter().find(|look| look.began > takeover.until).context("looking ended too early")?;
    let end = after.ends.get(&takeover.place).copied().unwrap_or(i64::MAX);
    let is_open = |record: &&Record| {
        record.partition == partition
            && record.offset < end
            && committed.is_none_or(|committed| !committed.covers(record.offset))
    };
    Ok(places.on(topic).iter().filter(is_open).collect())
}

/// Every assignment of a partition but its first one, in the order of time.
fn takeovers(logs: &[String], kills: &[Kill]) -> Vec<Takeover> {
    let mut assignments = Vec::new();
    for (dispatcher, log) in logs.iter().enumerate() {
        assignments.extend(log.lines().filter_map(assignment).map(|(at, place)| (at, place, dispatcher)));
    }
    assignments.sort_unstable();
    let mut last: BTreeMap<Place, (&str, usize)> = BTreeMap::new();
    let mut takeovers = Vec::new();
    for (at, place, dispatcher) in assignments {
        let Some((since, owner)) = last.insert(place, (at, dispatcher)) else { continue };
        let kill = kills
            .iter()
            .find(|kill| kill.dispatcher == owner && kill.at.as_str() > since && kill.at.as_str() < at);
        takeovers.push(Takeover {
            place,
            at: at.to_owned(),
            until: kill.map_or(at, |kill| &kill.at).to_owned(),
            after_kill: kill.is_some(),
        });
    }
    takeovers
}

/// When a line of a log says that a partition was assigned, and which.
fn assignment(line: &str) -> Option<(&str, Place)> {
    let (at, rest) = line.split_once(' ')?;
    let (_, fields) = rest.split_once("partition assigned topic=\"")?;
    let (name, fields) = fields.split_once('"')?;
    let partition = fields.strip_prefix(" partition=")?.split(' ').next()?.parse().ok()?;
    let topic = ["events", "due"].into_iter().find(|topic| name.ends_with(&format!("-{topic}")))?;
    Some((at, (topic, partition)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at: &str, partition: i32) -> String {
        format!(
            "2026-11-21T21:31:{at}Z  INFO floodway_dispatcher::ownership: partition assigned topic=\"e1-events\" \
             partition={partition} offset=0 read_from=0 run=f0ffe2ac is_new=false\n"
        )
    }

    #[test]
    fn a_takeover_is_every_assignment_but_the_first_and_knows_of_the_death_before() {
        let logs = [
            line("01.500000", 0) + &line("01.500001", 1),
            line("09.000000", 0) + "else\n" + &line("20.000000", 1),
        ];
        let kills = [Kill { dispatcher: 0, at: "2026-11-21T21:31:12.000Z".to_owned() }];
        let found = takeovers(&logs, &kills);
        let shown: Vec<_> = found
            .iter()
            .map(|takeover| (takeover.place, &takeover.until[17..19], takeover.after_kill))
            .collect();
        assert_eq!(shown, [(("events", 0), "09", false), (("events", 1), "12", true)]);
    }
}
