//! Producers that write down, for every event, what ingest said of it; and the topic's side of the story.

use crate::front::Front;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Events in one request of a load.
const BATCH: usize = 10;
/// Pause of a connection between an answer and the next request.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest wait for an answer: above every publish deadline.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// Longest wait for a load to have got so many answers.
const PATIENCE: Duration = Duration::from_secs(90);

/// What ingest said of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// 202.
    Acknowledged,
    /// 503, and nothing was written.
    NotPersisted,
    /// 503, and perhaps it was written.
    Unknown,
    /// 413.
    TooLarge,
    /// The connection broke, or there was none.
    NoAnswer,
}

/// An event to send.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Its id.
    pub id: String,
    /// Decides its partition.
    pub partition_key: String,
    /// Bytes of its data.
    pub bytes: usize,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status; `None` without an answer.
    pub status: Option<u16>,
    /// The request was refused before any of its events was looked at.
    pub refused_whole: bool,
    /// What it says of each event, in input order.
    pub words: Vec<Word>,
}

/// Sends requests; cheap to clone.
#[derive(Debug, Clone)]
pub struct EventClient {
    url: String,
    authorization: String,
    http: Client<HttpConnector, Full<Bytes>>,
}

/// What was said of every event, by its id.
pub type Ledger = BTreeMap<String, Word>;

impl Outgoing {
    /// A small event.
    pub fn small(id: impl Into<String>, partition_key: impl Into<String>) -> Self {
        Self { id: id.into(), partition_key: partition_key.into(), bytes: 40 }
    }
}

impl EventClient {
    /// A client of an ingest.
    pub fn new(url: &str, key: &str) -> Self {
        let http = Client::builder(TokioExecutor::new()).build_http();
        Self { url: url.to_owned(), authorization: format!("Bearer {key}"), http }
    }

    /// Sends events in one request.
    ///
    /// # Errors
    /// When the answer is none that ingest gives to such a request.
    pub async fn send(&self, events: &[Outgoing]) -> Result<Answer> {
        let body: Vec<Value> = events
            .iter()
            .map(|event| {
                serde_json::json!({"type": "e2e", "id": event.id, "partitionkey": event.partition_key,
                    "data": noise(event.bytes)})
            })
            .collect();
        let request = Request::post(&self.url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, &self.authorization)
            .body(Full::from(serde_json::to_vec(&body)?))?;
        let exchange = async {
            let response = self.http.request(request).await.ok()?;
            let status = response.status();
            Some((status, response.into_body().collect().await.ok()?.to_bytes()))
        };
        match timeout(ANSWER_DEADLINE, exchange)
            .await
            .context("no answer, and no broken connection either")?
        {
            Some((status, body)) => Answer::read(status, &body, events.len()),
            None => {
                Ok(Answer { status: None, refused_whole: false, words: vec![Word::NoAnswer; events.len()] })
            }
        }
    }

    /// Sends events again and again until all are acknowledged.
    ///
    /// # Errors
    /// When they are not in time.
    pub async fn send_until_acknowledged(&self, events: &[Outgoing]) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.send(events).await?.words.iter().any(|word| *word != Word::Acknowledged) {
            ensure!(Instant::now() < end, "{} events are not acknowledged", events.len());
            sleep(PAUSE).await;
        }
        Ok(())
    }
}

impl Answer {
    fn read(status: StatusCode, body: &[u8], events: usize) -> Result<Self> {
        let whole = |word, refused_whole| Self {
            status: Some(status.as_u16()),
            refused_whole,
            words: vec![word; events],
        };
        if status == StatusCode::ACCEPTED {
            return Ok(whole(Word::Acknowledged, false));
        }
        let body: Value = serde_json::from_slice(body)?;
        let Some(results) = body["results"].as_array() else {
            ensure!(
                status == 503 && body["outcome"] == "not_persisted",
                "unexpected answer {status}: {body}"
            );
            return Ok(whole(Word::NotPersisted, true));
        };
        ensure!(results.len() == events, "{} results for {events} events", results.len());
        let words: Result<Vec<Word>> = results.iter().map(word).collect();
        Ok(Self { words: words?, ..whole(Word::Unknown, false) })
    }

    /// How many events it says `word` of.
    pub fn count(&self, word: Word) -> usize {
        self.words.iter().filter(|said| **said == word).count()
    }
}

/// Text that does not compress, so that a record is as large as it looks.
fn noise(bytes: usize) -> String {
    rand::random_iter::<u8>()
        .map(|byte| char::from(b'!' + byte % 90))
        .filter(|c| *c != '"' && *c != '\\')
        .take(bytes)
        .collect()
}

fn word(result: &Value) -> Result<Word> {
    match (result["status"].as_u64(), result["outcome"].as_str()) {
        (Some(202), None) => Ok(Word::Acknowledged),
        (Some(413), None) => Ok(Word::TooLarge),
        (Some(503), Some("not_persisted")) => Ok(Word::NotPersisted),
        (Some(503), Some("unknown")) => Ok(Word::Unknown),
        _ => bail!("unexpected result {result}"),
    }
}

/// A load on one ingest, from several connections.
#[derive(Debug)]
pub struct Load {
    ledger: Arc<Mutex<Ledger>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Load {
    /// Starts sending batches over `connections` connections, events of many partition keys in each.
    pub fn start(client: &EventClient, connections: usize) -> Self {
        let (ledger, stop, tasks) = (Arc::default(), CancellationToken::new(), TaskTracker::new());
        let run: u32 = rand::random();
        for connection in 0..connections {
            let (client, ledger, stop) = (client.clone(), Arc::clone(&ledger), stop.clone());
            tasks.spawn(async move {
                for request in 0.. {
                    if stop.is_cancelled() {
                        break;
                    }
                    let events: Vec<Outgoing> = (0..BATCH)
                        .map(|n| {
                            Outgoing::small(
                                format!("{run:08x}-{connection}-{request}-{n}"),
                                format!("k{n}-{request}"),
                            )
                        })
                        .collect();
                    // An answer that nobody expects makes the ledger short of events, and the test fail for that.
                    let Ok(answer) = client.send(&events).await else { break };
                    note(&ledger, &events, &answer);
                    sleep(PAUSE).await;
                }
            });
        }
        tasks.close();
        Self { ledger, stop, tasks }
    }

    /// Of how many events `word` has been said.
    pub fn count(&self, word: Word) -> usize {
        lock(&self.ledger).values().filter(|said| **said == word).count()
    }

    /// Waits until `word` has been said of `more` further events.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn hears(&self, word: Word, more: usize) -> Result<()> {
        let (end, target) = (Instant::now() + PATIENCE, self.count(word) + more);
        while self.count(word) < target {
            ensure!(Instant::now() < end, "{word:?}: {} of {target}", self.count(word));
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Stops sending, waits for the answers under way, and returns what was said.
    pub async fn stop(self) -> Ledger {
        self.stop.cancel();
        self.tasks.wait().await;
        lock(&self.ledger).clone()
    }
}

/// Writes an answer into a ledger.
fn note(ledger: &Mutex<Ledger>, events: &[Outgoing], answer: &Answer) {
    lock(ledger).extend(events.iter().zip(&answer.words).map(|(event, word)| (event.id.clone(), *word)));
}

/// What a ledger held against the topic shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Events acknowledged; all of them are on the topic.
    pub acknowledged: usize,
    /// Events said to be not persisted; none of them is.
    pub not_persisted: usize,
    /// Events of which nothing is known, to the producer.
    pub unknown: usize,
    /// How many of those are on the topic.
    pub unknown_written: usize,
    /// Events that are on the topic more than once.
    pub repeated: usize,
}

/// Holds what was said against what is on the topic.
///
/// # Errors
/// When an acknowledged event is missing, or one is there that was said not to be.
pub async fn reconcile(front: &Front, ledger: &Ledger) -> Result<Kept> {
    let mut copies: HashMap<String, usize> = HashMap::new();
    for record in front.stored().await? {
        *copies.entry(record.id).or_default() += 1;
    }
    let of = |word: Word| ledger.iter().filter(move |(_, said)| **said == word).map(|(id, _)| id);
    let lost: Vec<&String> = of(Word::Acknowledged).filter(|id| !copies.contains_key(*id)).collect();
    ensure!(lost.is_empty(), "{} acknowledged events are lost, such as {:?}", lost.len(), lost[0]);
    let denied: Vec<&String> = of(Word::NotPersisted).filter(|id| copies.contains_key(*id)).collect();
    ensure!(denied.is_empty(), "{} events were written and denied, such as {:?}", denied.len(), denied[0]);
    let unclear = || of(Word::Unknown).chain(of(Word::NoAnswer));
    Ok(Kept {
        acknowledged: of(Word::Acknowledged).count(),
        not_persisted: of(Word::NotPersisted).count(),
        unknown: unclear().count(),
        unknown_written: unclear().filter(|id| copies.contains_key(*id)).count(),
        repeated: copies.values().filter(|count| **count > 1).count(),
    })
}

/// The events of a ledger of which `word` was said, to be sent again.
pub fn to_send_again(ledger: &Ledger, word: Word) -> Vec<Outgoing> {
    ledger.iter().filter(|(_, said)| **said == word).map(|(id, _)| Outgoing::small(id, id)).collect()
}

/// Each critical section is one insertion or read: a panic elsewhere cannot leave it half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
