//! `doppel events`.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use vmm::{Event, Listing};

use super::{print, transcript};
use crate::fail::Fail;

/// Print what is in a recording: everything that entered the machine, and where.
///
/// A line is: number, branches, guest time in seconds, bytes in the log, kind, details. With
/// `--what console --text` it is what was typed and printed, line by line, with the guest time in
/// seconds; what was printed is in no log and is found by running the machine again.
#[derive(Args, Debug)]
pub struct Events {
    /// Folder of the recording.
    #[arg(value_hint = ValueHint::DirPath)]
    dir: PathBuf,
    /// Only events of these kinds, as the lines name them; may be given several times.
    #[arg(long, value_name = "KIND", value_parser = kind)]
    what: Vec<String>,
    /// With --what console: a transcript, `>` before what was typed and `<` before what was
    /// printed.
    #[arg(long, requires = "what", conflicts_with_all = ["json", "console", "pcap"])]
    text: bool,
    /// A JSON object a line.
    #[arg(long, conflicts_with_all = ["console", "pcap"])]
    json: bool,
    /// What was typed at the first serial port, as it was typed.
    #[arg(long, conflicts_with = "pcap")]
    console: bool,
    /// Write the frames that were received to this file, for Wireshark and its like.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pcap: Option<PathBuf>,
}

impl Events {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
        if self.text {
            if self.what != ["console"] {
                return Err(Fail::Usage("--text goes with --what console".into()));
            }
            return transcript::print(&self.dir).map(|()| 0);
        }
        let listing = Listing::open(&self.dir).map_err(vmm::VmError::from)?;
        if let Some(path) = &self.pcap {
            return write_pcap(listing, path).map(|()| 0);
        }
        let form = match (self.json, self.console) {
            (true, _) => json_line,
            (_, true) => typed,
            _ => text_line,
        };
        let wanted = |event: &Event| {
            self.what.is_empty() || self.what.iter().any(|kind| kind == event.kind())
        };
        print_all(listing, |event| if wanted(event) { form(event) } else { Vec::new() }).map(|()| 0)
    }
}

/// A kind of event.
fn kind(text: &str) -> Result<String, String> {
    if Event::KINDS.contains(&text) {
        return Ok(text.into());
    }
    Err(format!("the kinds are {}", Event::KINDS.join(", ")))
}

fn print_all(mut listing: Listing, form: impl Fn(&Event) -> Vec<u8>) -> Result<(), Fail> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let written = loop {
        match listing.next_event() {
            Ok(Some(event)) => {
                if let Err(error) = out.write_all(&form(&event)) {
                    break Err(error);
                }
            }
            Ok(None) => break out.flush(),
            Err(error) => {
                let _ = out.flush();
                return Err(vmm::VmError::from(error).into());
            }
        }
    };
    match written {
        // A reader that has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => {
            written.map_err(|source| Fail::Host { action: "write to standard output", source })
        }
    }
}

fn text_line(event: &Event) -> Vec<u8> {
    let (point, time) = (event.entry.point, event.entry.at.0 as f64 / 1e9);
    let (number, branches, size) = (event.number, point.branches, event.size);
    let line = format!("{number:>7} {branches:>14} {time:>13.6} {size:>6} {:<10}", event.kind());
    let line = format!("{line} {}", event.detail());
    format!("{}\n", line.trim_end()).into_bytes()
}

fn json_line(event: &Event) -> Vec<u8> {
    let point = event.entry.point;
    let value = serde_json::json!({
        "number": event.number,
        "branches": point.branches,
        "rip": point.rip,
        "iterations": point.iterations,
        "virtual_time_ns": event.entry.at.0,
        "size": event.size,
        "kind": event.kind(),
        "detail": event.detail(),
    });
    format!("{value}\n").into_bytes()
}

fn typed(event: &Event) -> Vec<u8> {
    event.typed().unwrap_or_default().to_vec()
}

/// Writes a capture file: the classic format, in nanoseconds, of Ethernet frames. The time of a
/// frame is guest time since power-on.
fn write_pcap(mut listing: Listing, path: &Path) -> Result<(), Fail> {
    let failed = |source| Fail::Host { action: "write the capture file", source };
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    let header: [u32; 6] = [0xa1b2_3c4d, 2 | 4 << 16, 0, 0, 65_536, 1];
    let mut put = |fields: &[u32], frame: &[u8]| {
        let fields: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
        file.write_all(&fields).and_then(|()| file.write_all(frame)).map_err(failed)
    };
    put(&header, &[])?;
    let mut frames = 0;
    while let Some(event) = listing.next_event().map_err(vmm::VmError::from)? {
        let Some(frame) = event.frame() else { continue };
        let (time, len) = (event.entry.at.0, frame.len() as u32);
        let (seconds, rest) = (time / 1_000_000_000, time % 1_000_000_000);
        put(&[seconds as u32, rest as u32, len, len], frame)?;
        frames += 1;
    }
    file.flush().map_err(failed)?;
    print(&format!("{frames} frames\n"))
}
