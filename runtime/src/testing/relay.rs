//! A way to the broker that can be disturbed: a TCP relay in front of it.
//!
//! Clients learn brokers' addresses from answers, and would go past the relay: it puts its own address in the place of the broker's. It
//! serves a cluster of one broker, as tests have it, with a listener in plain text.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Bytes of requests that are passed on at a time.
const CHUNK: usize = 64 * 1024;
/// Topics, and partitions of each, that are added to an answer without brokers.
const MANY_TOPICS: usize = 300;
const MANY_PARTITIONS: i32 = 300;
/// So long clients are answered without brokers, and then as they should be: longer than their pauses before they connect again.
const LOSING: Duration = Duration::from_millis(2_500);
/// So often. Each time about one in ten gets away.
const LOSSES: u32 = 3;
/// Largest answer: more than clients ask for.
const MAX_ANSWER: usize = 256 << 20;

/// The relay. Dropped, it ends with all its connections.
#[derive(Debug)]
pub struct KafkaRelay {
    address: SocketAddr,
    relaying: Arc<Relaying>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Relaying {
    broker: SocketAddr,
    own_port: u16,
    connections: Mutex<Vec<Arc<Connection>>>,
    names_none: AtomicBool,
    ends: AtomicBool,
}

#[derive(Debug)]
struct Connection {
    client: TcpStream,
    broker: TcpStream,
}

impl KafkaRelay {
    /// Listens on a free port for connections to `broker`, an address with its port.
    ///
    /// # Errors
    /// When it cannot listen, or the address is none.
    pub fn start(broker: &str) -> io::Result<Self> {
        let broker = broker.parse().map_err(io::Error::other)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let relaying = Arc::new(Relaying {
            broker,
            own_port: address.port(),
            connections: Mutex::default(),
            names_none: AtomicBool::new(false),
            ends: AtomicBool::new(false),
        });
        let accepted = Arc::clone(&relaying);
        let accepting = thread::spawn(move || accepted.accept(&listener));
        Ok(Self { address, relaying, accepting: Some(accepting) })
    }

    /// What clients are to take for the broker.
    pub fn brokers(&self) -> String {
        self.address.to_string()
    }

    /// Makes the clients that are connected lose their brokers, mostly for good (see [`crate::stall`]): closes their connections, and as long
    /// as they come again names no broker in answers about the cluster, like a broker that has just started and takes no part yet. Clients
    /// that are made afterwards find the broker. Blocks for a quarter of a minute.
    ///
    /// The answers also name many topics that nobody asked for: librdkafka then takes so long for one that its last connection is closed
    /// meanwhile, as it is by chance anyway.
    pub fn loses_clients(&self) {
        for _ in 0..LOSSES {
            self.relaying.names_none.store(true, Ordering::Release);
            self.cut();
            thread::sleep(LOSING);
            self.relaying.names_none.store(false, Ordering::Release);
            thread::sleep(LOSING);
        }
    }

    /// Closes all connections. New ones work.
    fn cut(&self) {
        self.relaying.lock().drain(..).for_each(|connection| connection.close());
    }
}

impl Drop for KafkaRelay {
    fn drop(&mut self) {
        self.relaying.ends.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        self.cut();
    }
}

impl Relaying {
    /// Each critical section is one operation of the list: a panic elsewhere cannot leave it half done.
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.ends.load(Ordering::Acquire) {
                return;
            }
            // A broker that is not there closes the client's connection.
            if let Ok(client) = client {
                let _ = self.relay(client);
            }
        }
    }

    /// Serves a connection with two threads, which end when either side closes it.
    fn relay(self: &Arc<Self>, client: TcpStream) -> io::Result<()> {
        let broker = TcpStream::connect(self.broker)?;
        for stream in [&client, &broker] {
            stream.set_nodelay(true)?;
        }
        let connection = Arc::new(Connection { client, broker });
        self.lock().push(Arc::clone(&connection));
        let (requests, relaying) = (Arc::clone(&connection), Arc::clone(self));
        thread::spawn(move || {
            let _ = requests.pass_requests();
            requests.close();
        });
        thread::spawn(move || {
            let _ = relaying.pass_answers(&connection);
            connection.close();
            relaying.lock().retain(|other| !Arc::ptr_eq(other, &connection));
        });
        Ok(())
    }

    /// Passes answers on, each as a whole.
    fn pass_answers(&self, connection: &Connection) -> io::Result<()> {
        let mut answer = Vec::new();
        loop {
            let mut length = [0; 4];
            (&connection.broker).read_exact(&mut length)?;
            let length = u32::from_be_bytes(length) as usize;
            if length > MAX_ANSWER {
                return Err(io::ErrorKind::InvalidData.into());
            }
            answer.resize(length, 0);
            (&connection.broker).read_exact(&mut answer)?;
            let names_none = self.names_none.load(Ordering::Acquire);
            let mut changed = names_none.then(|| self.without_broker(&answer)).flatten();
            let answer = changed.as_mut().unwrap_or(&mut answer);
            self.put_own_port(answer);
            // An answer is far below 4 GiB.
            let mut whole = (answer.len() as u32).to_be_bytes().to_vec();
            whole.extend_from_slice(answer);
            (&connection.client).write_all(&whole)?;
        }
    }

    /// The broker's host and port as they are in answers.
    fn broker_in_answers(&self) -> Vec<u8> {
        [self.broker.ip().to_string().as_bytes(), &u32::from(self.broker.port()).to_be_bytes()].concat()
    }

    fn put_own_port(&self, answer: &mut [u8]) {
        let wanted = self.broker_in_answers();
        let mut from = 0;
        while let Some(at) = answer[from..].windows(wanted.len()).position(|bytes| bytes == wanted) {
            from += at + wanted.len();
            answer[from - 4..from].copy_from_slice(&u32::from(self.own_port).to_be_bytes());
        }
    }

    /// An answer about the cluster (`Metadata`, version 10 and later) without the one broker, and with more topics; `None` for any other.
    ///
    /// After the number of the request (4 bytes), no tags (1), and the throttle time (4) come the number of brokers plus one, and of each its
    /// id (4), the length of its host plus one, host and port, its rack (1, if it has none) and no tags (1); then the length of the
    /// cluster's id plus one, that id, the controller's (4), the number of topics plus one, and the topics.
    fn without_broker(&self, answer: &[u8]) -> Option<Vec<u8>> {
        const COUNT: usize = 9;
        const HOST: usize = COUNT + 1 + 4 + 1;
        let broker = self.broker_in_answers();
        if answer.get(COUNT) != Some(&2) || !answer.get(HOST..)?.starts_with(&broker) {
            return None;
        }
        let cluster = HOST + broker.len() + 2;
        let topics = cluster + 1 + usize::from(answer.get(cluster)?.saturating_sub(1)) + 4;
        let (count, rest) = number(answer.get(topics..)?)?;
        let mut changed = [&answer[..COUNT], &[1], &answer[cluster..topics]].concat();
        put_number(&mut changed, count + MANY_TOPICS);
        (0..MANY_TOPICS).for_each(|topic| put_topic(&mut changed, topic));
        changed.extend_from_slice(rest);
        Some(changed)
    }
}

/// A topic as it is in an answer about the cluster: error, name, id, whether it is internal, partitions, permissions, no tags; and of each
/// partition error, number, leader, its epoch, replicas, those in sync, those that are not there, no tags.
fn put_topic(answer: &mut Vec<u8>, topic: usize) {
    let name = format!("nobody-asked-for-{topic}");
    answer.extend_from_slice(&[0; 2]);
    put_number(answer, name.len() + 1);
    answer.extend_from_slice(name.as_bytes());
    answer.extend_from_slice(&(topic as u128 + 1).to_be_bytes());
    answer.push(0);
    put_number(answer, MANY_PARTITIONS as usize + 1);
    for partition in (0..MANY_PARTITIONS).rev() {
        answer.extend_from_slice(&[0; 2]);
        [partition, -1, -1].iter().for_each(|number| answer.extend_from_slice(&number.to_be_bytes()));
        answer.extend_from_slice(&[1, 1, 1, 0]);
    }
    answer.extend_from_slice(&i32::MIN.to_be_bytes());
    answer.push(0);
}

/// An unsigned number of variable length, and what follows it.
fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let length = bytes.iter().take(4).position(|byte| byte & 0x80 == 0)? + 1;
    let (number, rest) = bytes.split_at(length);
    Some((number.iter().rev().fold(0, |number, byte| number << 7 | usize::from(byte & 0x7f)), rest))
}

fn put_number(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

impl Connection {
    fn pass_requests(&self) -> io::Result<()> {
        let mut bytes = vec![0; CHUNK];
        loop {
            let length = (&self.client).read(&mut bytes)?;
            if length == 0 {
                return Ok(());
            }
            (&self.broker).write_all(&bytes[..length])?;
        }
    }

    fn close(&self) {
        for stream in [&self.client, &self.broker] {
            // Closed already, if it fails.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
