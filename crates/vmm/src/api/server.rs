//! The thread that serves the API.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use host::runtime_dir::Listener;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

use super::{Api, routes};
use crate::VmError;

/// How long answers under way may take when the VM has ended.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A running server. Dropping it ends its thread and removes its sockets.
#[derive(Debug)]
pub(crate) struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _listeners: Vec<Listener>,
}

impl Server {
    /// Serves on all of `listeners`.
    pub fn start(listeners: Vec<Listener>, api: Api) -> Result<Server, VmError> {
        let failed = |source| VmError::Thread { what: "API", source };
        let sockets = listeners.iter().map(|listener| {
            let socket = listener.socket().try_clone()?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        let sockets = sockets.collect::<io::Result<Vec<_>>>().map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(failed)?;
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            runtime.block_on(async {
                for socket in sockets {
                    serve(socket, api.clone());
                }
                drop(api);
                let _ = stopped.await;
                tokio::time::sleep(LAST_WORDS).await;
            });
        };
        let thread = std::thread::Builder::new().name("api".into()).spawn(serve).map_err(failed)?;
        Ok(Server { stop: Some(stop), thread: Some(thread), _listeners: listeners })
    }
}

fn serve(socket: std::os::unix::net::UnixListener, api: Api) {
    let router = routes::router(api);
    tokio::spawn(async move {
        match UnixListener::from_std(socket) {
            Ok(socket) => {
                // Returns only if it is told to, and it is not.
                let _ = axum::serve(socket, router).await;
            }
            Err(error) => tracing::error!("the API does not listen: {error}"),
        }
    });
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
