//! `doppel chain`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use checkpoint::{Checkpoint, CheckpointError};
use clap::{Args, Subcommand, ValueHint};
use indicatif::ProgressBar;
use serde::Serialize;

use super::{print, print_json};
use crate::fail::Fail;

/// Look after checkpoints that stand on others (checkpoint --incremental-from).
#[derive(Args, Debug)]
pub struct Chain {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show a checkpoint and those it stands on.
    List(Named),
    /// Read all of a checkpoint, and of those it stands on, against the checksums.
    Verify(Named),
    /// Make a checkpoint stand alone; it is replaced in one step.
    Merge(Named),
    /// Make a checkpoint stand alone, and remove those it stood on that no other checkpoint beside
    /// them needs.
    Prune(Named),
}

#[derive(Args, Debug)]
struct Named {
    /// The checkpoint.
    #[arg(value_hint = ValueHint::DirPath)]
    folder: PathBuf,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// One checkpoint of a chain.
#[derive(Serialize)]
struct Link {
    folder: PathBuf,
    id: String,
    pages: u64,
    virtual_time_ns: u64,
    branches: u64,
}

#[derive(Serialize)]
struct Outcome {
    pages: u64,
    removed: Vec<PathBuf>,
}

impl Chain {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
        let (named, outcome) = match &self.what {
            What::List(named) => return list(named).map(|()| 0),
            What::Verify(named) => {
                let checkpoint = Checkpoint::open(&named.folder)?;
                (named, with_progress(|on_page| checkpoint.verify(on_page).map(|()| Vec::new()))?)
            }
            What::Merge(named) => (
                named,
                with_progress(|on_page| {
                    checkpoint::merge(&named.folder, on_page).map(|_| Vec::new())
                })?,
            ),
            What::Prune(named) => {
                (named, with_progress(|on_page| checkpoint::prune(&named.folder, on_page))?)
            }
        };
        if named.json {
            print_json(&outcome)?;
        } else {
            print(&describe(&named.folder, &outcome))?;
        }
        Ok(0)
    }
}

fn describe(folder: &Path, outcome: &Outcome) -> String {
    let mut text = format!("{}: {} pages, all right\n", folder.display(), outcome.pages);
    for path in &outcome.removed {
        text.push_str(&format!("removed {}\n", path.display()));
    }
    text
}

fn list(named: &Named) -> Result<(), Fail> {
    let checkpoint = Checkpoint::open(&named.folder)?;
    let link = |(folder, manifest): (&Path, &checkpoint::Manifest)| Link {
        folder: folder.into(),
        id: manifest.id.to_string(),
        pages: manifest.memory.pages,
        virtual_time_ns: manifest.virtual_time_ns,
        branches: manifest.point.branches,
    };
    let links: Vec<_> = checkpoint.chain().map(link).collect();
    if named.json {
        return print_json(&links);
    }
    let line = |link: &Link| {
        let seconds = link.virtual_time_ns as f64 / 1e9;
        let (folder, megabytes) = (link.folder.display(), link.pages * 4096 / 1_000_000);
        format!("{}  {megabytes:>6} MB  {seconds:>10.3} s  {folder}\n", &link.id[..8])
    };
    print(&links.iter().map(line).collect::<String>())
}

/// Counts pages, on a terminal for all to see.
fn with_progress(
    work: impl FnOnce(&mut dyn FnMut()) -> Result<Vec<PathBuf>, CheckpointError>,
) -> Result<Outcome, Fail> {
    let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
    let mut pages = 0;
    let removed = work(&mut || {
        pages += 1;
        if let Some(bar) = bar.as_ref().filter(|_| pages % 4096 == 0) {
            bar.set_message(format!("{} MB", pages * 4096 / 1_000_000));
            bar.tick();
        }
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(Outcome { pages, removed: removed? })
}
