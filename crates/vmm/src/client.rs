//! Talking to the API of a running VM, blocking: what the verbs of the command line use.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::{ErrorReply, StateReply, StopRequest};
use crate::{
    CheckpointRequest, CheckpointStatus, DebugReply, DebugRequest, Metrics, RecordRequest,
    RecordStatus, SaveRecordingRequest, State, VmInfo,
};

/// How long a VM may take to answer.
const TIME_MAX: Duration = Duration::from_secs(10);
/// Largest answer, bytes.
const ANSWER_SIZE_MAX: usize = 4 << 20;

/// Why a VM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It cannot be reached.
    #[error("cannot reach the VM at {socket}: {what}")]
    Unreachable {
        /// Its socket.
        socket: String,
        /// What happened.
        what: String,
    },
    /// It refused.
    #[error("{0}")]
    Refused(String),
}

/// A VM to talk to.
#[derive(Clone, Debug)]
pub struct Client<'a> {
    socket: &'a Path,
}

impl<'a> Client<'a> {
    /// The VM whose API is at `socket`.
    pub fn new(socket: &'a Path) -> Client<'a> {
        Client { socket }
    }

    /// What it is and where it stands.
    ///
    /// # Errors
    /// As all calls here: [`ClientError`] if it cannot be reached or refuses.
    pub fn inspect(&self) -> Result<VmInfo, ClientError> {
        self.call(Method::GET, "/vm", String::new())
    }

    /// Its counters.
    ///
    /// # Errors
    /// See [`Client::inspect`].
    pub fn metrics(&self) -> Result<Metrics, ClientError> {
        self.call(Method::GET, "/vm/metrics", String::new())
    }

    /// Makes it stand still.
    ///
    /// # Errors
    /// See [`Client::inspect`].
    pub fn pause(&self) -> Result<State, ClientError> {
        self.put("/vm/pause", String::new())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// See [`Client::inspect`].
    pub fn resume(&self) -> Result<State, ClientError> {
        self.put("/vm/resume", String::new())
    }

    /// Asks it to power off, or ends it at once.
    ///
    /// # Errors
    /// See [`Client::inspect`].
    pub fn stop(&self, force: bool) -> Result<State, ClientError> {
        let body = serde_json::to_string(&StopRequest { force }).unwrap_or_default();
        self.put("/vm/stop", body)
    }

    /// Presses its power button.
    ///
    /// # Errors
    /// See [`Client::inspect`].
    pub fn power_button(&self) -> Result<State, ClientError> {
        self.put("/vm/power-button", String::new())
    }

    /// Starts a checkpoint.
    ///
    /// # Errors
    /// See [`Client::inspect`].
    pub fn start_checkpoint(
        &self,
        request: &CheckpointRequest,
    ) -> Result<CheckpointStatus, ClientError> {
        let body = serde_json::to_string(request).unwrap_or_default();
        self.call(Method::PUT, "/vm/checkpoint", body)
    }

    /// How far the last checkpoint is.
    ///
    /// # Errors
    /// See [`Client::inspect`].
    pub fn checkpoint(&self) -> Result<CheckpointStatus, ClientError> {
        self.call(Method::GET, "/vm/checkpoint", String::new())
    }

    /// Gives up the checkpoint that is being taken.
    ///
    /// # Errors
    /// See [`Client::inspect`].
    pub fn cancel_checkpoint(&self) -> Result<CheckpointStatus, ClientError> {
        self.call(Method::DELETE, "/vm/checkpoint", String::new())
    }

    /// Starts a recording; the checkpoint it begins with.
    ///
    /// # Errors
    /// See [`Client::inspect`].
    pub fn record(&self, request: &RecordRequest) -> Result<CheckpointStatus, ClientError> {
        let body = serde_json::to_string(request).unwrap_or_default();
        self.call(Method::PUT, "/vm/record", body)
    }

    /// Makes a recording into `folder`, absolute, of what its flight recorder has.
    ///
    /// # Errors
    /// See [`Client::inspect`].
    pub fn save_recording(&self, folder: &Path) -> Result<CheckpointStatus, ClientError> {
        let request = SaveRecordingRequest { folder: folder.into() };
        let body = serde_json::to_string(&request).unwrap_or_default();
        self.call(Method::PUT, "/vm/save-recording", body)
    }

    /// The recording that is being made of it.
    ///
    /// # Errors
    /// See [`Client::inspect`].
    pub fn record_status(&self) -> Result<RecordStatus, ClientError> {
        self.call(Method::GET, "/vm/record", String::new())
    }

    /// Ends the recording that is being made.
    ///
    /// # Errors
    /// See [`Client::inspect`].
    pub fn end_recording(&self) -> Result<State, ClientError> {
        Ok(self.call::<StateReply>(Method::DELETE, "/vm/record", String::new())?.state)
    }

    /// Has it serve gdb; where.
    ///
    /// # Errors
    /// See [`Client::inspect`].
    pub fn debug(&self, request: &DebugRequest) -> Result<DebugReply, ClientError> {
        let body = serde_json::to_string(request).unwrap_or_default();
        self.call(Method::PUT, "/vm/debug", body)
    }

    fn put(&self, path: &str, body: String) -> Result<State, ClientError> {
        Ok(self.call::<StateReply>(Method::PUT, path, body)?.state)
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<T, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| self.unreachable(error))?;
        let exchange = async {
            let timed = tokio::time::timeout(TIME_MAX, self.exchange(method, path, body)).await;
            timed.map_err(|_| self.unreachable("no answer in 10 seconds"))?
        };
        let (status, answer) = runtime.block_on(exchange)?;
        if !status.is_success() {
            let error = serde_json::from_slice::<ErrorReply>(&answer);
            return Err(ClientError::Refused(match error {
                Ok(reply) => reply.error,
                Err(_) => format!("the VM answered {status}"),
            }));
        }
        serde_json::from_slice(&answer).map_err(|error| self.unreachable(error))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let failed = |error: hyper::Error| self.unreachable(error);
        let stream =
            UnixStream::connect(self.socket).await.map_err(|error| self.unreachable(error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        let connection = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "vm");
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let request =
            request.body(Full::new(Bytes::from(body))).map_err(|error| self.unreachable(error))?;
        let response = sender.send_request(request).await.map_err(failed)?;
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), ANSWER_SIZE_MAX);
        let answer = body.collect().await.map_err(|error| self.unreachable(error))?.to_bytes();
        connection.abort();
        Ok((status, answer))
    }

    fn unreachable(&self, what: impl ToString) -> ClientError {
        let socket = self.socket.display().to_string();
        ClientError::Unreachable { socket, what: what.to_string() }
    }
}
