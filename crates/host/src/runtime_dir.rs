//! The folder where running VMs keep their sockets, and sockets in it.
//!
//! The folder is `$XDG_RUNTIME_DIR/doppel`, or `/run/doppel` for root, or `/tmp/doppel-UID`. It
//! belongs to this user and nobody else may enter it; anything else is refused, since in `/tmp`
//! others could have put it there.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// Longest path of a socket in bytes (`sun_path` of `sockaddr_un`, less its final zero).
pub const SOCKET_PATH_MAX: usize = 107;

/// Why a folder or socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeDirError {
    /// The system refused.
    #[error("cannot {action} {path:?}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The folder is there, but it is not private to this user.
    #[error("{path:?} {problem}; remove it, or set XDG_RUNTIME_DIR to a folder of your own")]
    NotPrivate {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The path does not fit the system's limit for sockets.
    #[error("socket path {path:?} has {len} bytes, more than {SOCKET_PATH_MAX}; use a shorter one")]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// Somebody listens there.
    #[error("socket {path:?} is in use by a running process; choose another path or stop that one")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path is taken by something that is not a socket.
    #[error("{path:?} exists and is not a socket; remove it or choose another path")]
    NotASocket {
        /// What is in the way.
        path: PathBuf,
    },
}

/// The folder for sockets of running VMs, made if need be.
///
/// Fails if it cannot be made or is not private to this user.
pub fn runtime_dir() -> Result<PathBuf, RuntimeDirError> {
    let path = choose(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from));
    make_private(&path)?;
    Ok(path)
}

/// `XDG_RUNTIME_DIR` counts only if it is ours: under sudo it is somebody else's.
fn choose(xdg: Option<PathBuf>) -> PathBuf {
    let user = geteuid();
    let owned = |path: &PathBuf| {
        path.is_absolute() && fs::metadata(path).is_ok_and(|is| is.uid() == user.as_raw())
    };
    match xdg.filter(owned) {
        Some(xdg) => xdg.join("doppel"),
        None if user.is_root() => "/run/doppel".into(),
        None => format!("/tmp/doppel-{}", user.as_raw()).into(),
    }
}

/// Makes a folder that only this user may enter, or checks that an existing one is so.
pub fn make_private(path: &Path) -> Result<(), RuntimeDirError> {
    let failed =
        |action| move |source| RuntimeDirError::System { action, path: path.into(), source };
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(failed("create folder")(error));
        }
        _ => {}
    }
    let is = fs::symlink_metadata(path).map_err(failed("examine"))?;
    let problem = if !is.is_dir() {
        "is not a folder".to_owned()
    } else if is.uid() != geteuid().as_raw() {
        format!("belongs to user {}, not to you", is.uid())
    } else if is.mode() & 0o077 != 0 {
        format!("may be entered by others (mode {:o})", is.mode() & 0o7777)
    } else {
        return Ok(());
    };
    Err(RuntimeDirError::NotPrivate { path: path.into(), problem })
}

/// A listening socket that removes its file when dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// (device, inode) of the file made, so as not to remove another's.
    identity: (u64, u64),
}

impl Listener {
    /// Listens at `path`, accessible to this user only. A file left by a process that is gone is
    /// replaced.
    ///
    /// Fails if the path is too long, taken by a running process or by another kind of file.
    pub fn bind(path: &Path) -> Result<Listener, RuntimeDirError> {
        let failed =
            |action| move |source| RuntimeDirError::System { action, path: path.into(), source };
        let len = path.as_os_str().len();
        if len > SOCKET_PATH_MAX {
            return Err(RuntimeDirError::TooLong { path: path.into(), len });
        }
        if let Ok(is) = fs::symlink_metadata(path) {
            if !is.file_type().is_socket() {
                return Err(RuntimeDirError::NotASocket { path: path.into() });
            }
            if UnixStream::connect(path).is_ok() {
                return Err(RuntimeDirError::InUse { path: path.into() });
            }
            fs::remove_file(path).map_err(failed("remove the stale socket"))?;
        }
        let socket = UnixListener::bind(path).map_err(failed("listen at socket"))?;
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(path, private).map_err(failed("restrict socket"))?;
        let is = fs::symlink_metadata(path).map_err(failed("examine"))?;
        Ok(Listener { socket, path: path.into(), identity: (is.dev(), is.ino()) })
    }

    /// The socket.
    pub fn socket(&self) -> &UnixListener {
        &self.socket
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|is| (is.dev(), is.ino()) == self.identity);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("doppel-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn private_folder_is_made_once_and_checked_after() {
        let path = scratch("private");
        make_private(&path).unwrap();
        make_private(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(make_private(&path).unwrap_err().to_string().contains("mode 755"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let link = path.join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(make_private(&link).unwrap_err().to_string().contains("not a folder"));
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_folder_of_another_user_is_not_chosen() {
        assert!(!choose(Some("relative".into())).starts_with("relative"));
        let mine = scratch("xdg");
        make_private(&mine).unwrap();
        assert_eq!(choose(Some(mine.clone())), mine.join("doppel"));
        fs::remove_dir_all(mine).unwrap();
    }

    #[test]
    fn stale_sockets_are_replaced_and_live_ones_are_not() {
        let folder = scratch("listen");
        make_private(&folder).unwrap();
        let path = folder.join("s");
        let live = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(RuntimeDirError::InUse { .. })));
        drop(live);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Listener::bind(&path).unwrap());
        fs::write(&path, "x").unwrap();
        assert!(matches!(Listener::bind(&path), Err(RuntimeDirError::NotASocket { .. })));
        let long = folder.join("x".repeat(200));
        assert!(matches!(Listener::bind(&long), Err(RuntimeDirError::TooLong { .. })));
        fs::remove_dir_all(folder).unwrap();
    }
}
