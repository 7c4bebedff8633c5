//! A server that speaks HTTP/2 frame by frame, and so does what no library would.

use bytes::Bytes;
use http::Response;
use http_body_util::Empty;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use url::Url;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;
/// `END_STREAM` of headers and data; the acknowledgement of settings and pings.
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
/// A response's head: 200.
pub(crate) const OK: &[u8] = &[0x88];
/// An interim response's: 103.
pub(crate) const EARLY_HINTS: &[u8] = &[0x08, 3, b'1', b'0', b'3'];
pub(crate) const REFUSED: [u8; 4] = 7_u32.to_be_bytes();
pub(crate) const HTTP_1_1_REQUIRED: [u8; 4] = 13_u32.to_be_bytes();
/// `SETTINGS_MAX_CONCURRENT_STREAMS`.
const MAX_STREAMS: u16 = 3;

/// A connection after the preface and the first settings.
pub(crate) struct Frames {
    stream: TlsStream<TcpStream>,
    /// Bytes written.
    pub(crate) sent: usize,
}

impl Frames {
    async fn open(mut stream: TlsStream<TcpStream>, max_streams: Option<u32>) -> io::Result<Self> {
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await?;
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut settings = Vec::new();
        if let Some(most) = max_streams {
            settings.extend_from_slice(&MAX_STREAMS.to_be_bytes());
            settings.extend_from_slice(&most.to_be_bytes());
        }
        let mut frames = Self { stream, sent: 0 };
        frames.send(SETTINGS, 0, 0, &settings).await?;
        Ok(frames)
    }

    pub(crate) async fn send(&mut self, kind: u8, flags: u8, id: u32, payload: &[u8]) -> io::Result<()> {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags]);
        frame.extend_from_slice(&id.to_be_bytes());
        frame.extend_from_slice(payload);
        self.sent += frame.len();
        self.stream.write_all(&frame).await?;
        self.stream.flush().await
    }

    /// The next frame: its kind, flags and stream. Settings are acknowledged.
    pub(crate) async fn next(&mut self) -> io::Result<(u8, u8, u32)> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).await?;
        let (kind, flags) = (head[3], head[4]);
        if kind == SETTINGS && flags & END_STREAM == 0 {
            self.send(SETTINGS, END_STREAM, 0, &[]).await?;
        }
        Ok((kind, flags, u32::from_be_bytes([head[5], head[6], head[7], head[8]])))
    }

    /// The stream of the next request, read whole.
    pub(crate) async fn request(&mut self) -> io::Result<u32> {
        loop {
            let (kind, flags, id) = self.next().await?;
            if matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                return Ok(id);
            }
        }
    }

    /// Whether no request comes before the other side has read all that was sent, and answered.
    pub(crate) async fn is_quiet(&mut self) -> io::Result<bool> {
        self.send(PING, 0, 0, &[7; 8]).await?;
        loop {
            match self.next().await? {
                (PING, flags, _) if flags & END_STREAM != 0 => return Ok(true),
                (HEADERS, ..) => return Ok(false),
                _ => {}
            }
        }
    }

    /// Answers 200.
    pub(crate) async fn answer(&mut self, id: u32) -> io::Result<()> {
        self.send(HEADERS, END_HEADERS | END_STREAM, id, OK).await
    }

    /// Says no more, and waits until the other side has left, too.
    pub(crate) async fn leave(mut self) {
        // Either is an end.
        let _ = self.stream.shutdown().await;
        while self.next().await.is_ok() {}
    }

    /// Answers everything that comes; returns how much that was when the other side leaves.
    pub(crate) async fn answer_all(&mut self) -> usize {
        let mut count = 0;
        while let Ok(id) = self.request().await {
            if self.answer(id).await.is_err() {
                break;
            }
            count += 1;
        }
        count
    }
}

/// A server of such connections.
pub(crate) struct FrameServer {
    port: u16,
    connections: Arc<AtomicUsize>,
    http1_requests: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl FrameServer {
    /// Serves each connection as told, by its number from 0. Those of HTTP/1.1 get 200 for everything.
    pub(crate) async fn start<S, W>(acceptor: TlsAcceptor, max_streams: Option<u32>, serve: S) -> Self
    where
        S: Fn(usize, Frames) -> W + Send + 'static,
        W: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let http1_requests = Arc::new(AtomicUsize::new(0));
        let requests = Arc::clone(&http1_requests);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut served = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                    let requests = Arc::clone(&requests);
                    let answer = service_fn(move |_| {
                        requests.fetch_add(1, Ordering::SeqCst);
                        async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
                    });
                    let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                    served.spawn(async move { drop(serving.await) });
                    continue;
                }
                let Ok(frames) = Frames::open(stream, max_streams).await else { continue };
                // Its end is the other side's doing, or its own.
                let serving = serve(count.fetch_add(1, Ordering::SeqCst), frames);
                served.spawn(async move { drop(serving.await) });
            }
        });
        Self { port, connections, http1_requests, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> Url {
        format!("https://localhost:{}/", self.port).parse().unwrap()
    }

    /// Requests over HTTP/1.1 so far.
    pub(crate) fn http1_requests(&self) -> usize {
        self.http1_requests.load(Ordering::SeqCst)
    }

    /// Connections of HTTP/2 so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}
