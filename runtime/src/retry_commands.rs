//! Writing commands to pending retries onto the partitions of `outcomes`.

use crate::{
    kafka::{KafkaSettings, REQUEST_TIMEOUT},
    replaceable_producer::{Look, ReplaceableProducer},
    witness::Witness,
};
use floodway_schemas::{
    outcome::KIND_HEADER,
    retry_command::{COMMAND_KIND, RetryCommand},
    topic::Topic,
};
use rdkafka::{
    ClientContext, Message,
    error::{KafkaError, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer, ProducerContext},
};
use std::sync::{Arc, mpsc};

/// Longest time from sending a record to its acknowledgement, in milliseconds: a person waits for it.
const MESSAGE_TIMEOUT_MS: &str = "5000";

type Answer = mpsc::Sender<Result<(), KafkaError>>;

/// Tells each record's sender what became of it.
#[derive(Clone)]
struct Answers;

impl ClientContext for Answers {}

impl ProducerContext for Answers {
    type DeliveryOpaque = Box<Answer>;

    fn delivery(&self, result: &DeliveryResult<'_>, answer: Box<Answer>) {
        let result = match result {
            Ok(_) => Ok(()),
            Err((error, record)) => {
                tracing::debug!(partition = record.partition(), %error, "a command is not taken");
                Err(error.clone())
            }
        };
        // Nobody waits any more when the request was given up.
        let _ = answer.send(result);
    }
}

/// Writes commands. Cheap to clone.
#[derive(Clone)]
pub struct RetryCommands {
    producer: Arc<ReplaceableProducer<Answers>>,
    topic: String,
}

impl std::fmt::Debug for RetryCommands {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RetryCommands").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl RetryCommands {
    /// Connects nothing yet.
    ///
    /// # Errors
    /// When the client refuses its settings.
    pub fn new(kafka: &KafkaSettings) -> Result<Self, KafkaError> {
        let mut config = kafka.producer();
        config.set("message.timeout.ms", MESSAGE_TIMEOUT_MS);
        let producer = Arc::new(ReplaceableProducer::new(config, Answers)?);
        Ok(Self { producer, topic: kafka.topic(Topic::Outcomes) })
    }

    /// Asks the brokers for the topic, and replaces a client that has lost them. Blocks for some seconds.
    pub fn look(&self, witness: &Witness) -> Look {
        self.producer.look(&self.topic, witness)
    }

    /// Writes a command to every partition that it is for, and answers how many those are once all in-sync replicas have it. After
    /// an error some may have it; the same command may be sent again, and counts once.
    ///
    /// # Errors
    /// When Kafka does not answer or does not take it.
    pub async fn send(&self, command: &RetryCommand) -> Result<usize, KafkaError> {
        let (commands, command) = (self.clone(), command.clone());
        let send = move || commands.send_blocking(&command);
        tokio::task::spawn_blocking(send).await.unwrap_or(Err(KafkaError::Canceled))
    }

    fn send_blocking(&self, command: &RetryCommand) -> Result<usize, KafkaError> {
        // Encoding cannot fail: there is no map with keys other than strings.
        let value = command.encode().map_err(|_| KafkaError::Canceled)?;
        let producer = self.producer.live();
        let metadata = producer.client().fetch_metadata(Some(&self.topic), REQUEST_TIMEOUT)?;
        let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
        if partitions == 0 {
            return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition));
        }
        let partitions = command.partitions(i32::try_from(partitions).unwrap_or(i32::MAX));
        let key = command.command.to_string();
        let (answer, answers) = mpsc::channel();
        for partition in &partitions {
            let headers = OwnedHeaders::new().insert(Header { key: KIND_HEADER, value: Some(COMMAND_KIND) });
            let record = BaseRecord::with_opaque_to(&self.topic, Box::new(answer.clone()))
                .partition(*partition)
                .key(&key)
                .payload(&value)
                .headers(headers);
            producer.send(record).map_err(|(error, _)| error)?;
        }
        drop((answer, producer));
        // The producer answers every record, at the latest when its timeout passes.
        answers.iter().collect::<Result<(), KafkaError>>()?;
        Ok(partitions.len())
    }
}
