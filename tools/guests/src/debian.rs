//! The Debian guest: a whole system with systemd on an ext4 disk.
use crate::cache::Cache;
use anyhow::Result;
use std::path::PathBuf;
/// x
#[derive(Clone, Debug)]
pub struct Debian {
    /// x
    pub raw: PathBuf,
}
/// x
/// # Errors
/// x
pub fn debian(_cache: &Cache, _force: bool) -> Result<Debian> {
    anyhow::bail!("todo")
}
