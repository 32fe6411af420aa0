//! A private apt: the host's own package sources plus bookworm-backports, nothing in /etc changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::command::{capture, run, say};

const FALLBACK: &str = "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: bookworm\n\
    Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n";

/// Which of Debian's archives a package is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// Debian 12 and its updates.
    Stable,
    /// Newer versions built for Debian 12.
    Backports,
}

/// apt with its own sources and package lists, in the cache.
#[derive(Clone, Debug)]
pub struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Sets up the private apt in `cache` and fetches the package lists.
    ///
    /// # Errors
    /// When the host's sources cannot be read or the lists cannot be fetched.
    pub fn open(cache: &Cache) -> Result<Apt> {
        let apt = Apt { dir: cache.path("apt") };
        for dir in ["sources", "lists/partial", "archives/partial"] {
            fs::create_dir_all(apt.dir.join(dir))?;
        }
        let stable = host_sources(Path::new("/etc/apt"))?;
        fs::write(apt.stable_sources(), &stable)?;
        fs::write(apt.dir.join("sources/backports.sources"), backports(&stable)?)?;
        fs::write(apt.dir.join("apt.conf"), apt.configuration())?;
        say("fetching package lists");
        run(apt.command("apt-get").arg("update")).context("fetching package lists")?;
        Ok(apt)
    }

    /// The sources file (deb822) with Debian 12 alone.
    #[must_use]
    pub fn stable_sources(&self) -> PathBuf {
        self.dir.join("sources/stable.sources")
    }

    /// A command of apt that uses the private configuration.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.dir.join("apt.conf")).env("LC_ALL", "C");
        command
    }

    /// The newest version of `package` in `suite`, and what it depends on, as apt-cache shows it.
    ///
    /// # Errors
    /// When the suite has no such package.
    pub fn newest(&self, package: &str, suite: Suite) -> Result<Stanza> {
        let text = capture(self.command("apt-cache").args(["show", package]))?;
        let mut best: Option<Stanza> = None;
        for stanza in text.split("\n\n").filter_map(Stanza::parse) {
            let newer = match &best {
                Some(old) => is_newer(&stanza.version, &old.version),
                None => true,
            };
            if stanza.suite() == suite && newer {
                best = Some(stanza);
            }
        }
        best.with_context(|| format!("no package {package} in {suite:?}"))
    }

    /// Downloads `package` (`name` or `name=version`) and unpacks it into the folder `into`.
    ///
    /// # Errors
    /// When the download or the unpacking fails.
    pub fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        let spool = self.dir.join("spool");
        if spool.exists() {
            fs::remove_dir_all(&spool)?;
        }
        fs::create_dir_all(&spool)?;
        run(self.command("apt-get").args(["download", package]).current_dir(&spool))?;
        for entry in fs::read_dir(&spool)? {
            run(Command::new("dpkg-deb").arg("-x").arg(entry?.path()).arg(into))?;
        }
        Ok(fs::remove_dir_all(&spool)?)
    }

    /// Downloads `package` into the folder `into`; the file.
    ///
    /// # Errors
    /// When there is no such package, or the download fails.
    pub fn download(&self, package: &str, into: &Path) -> Result<PathBuf> {
        run(self.command("apt-get").args(["download", package]).current_dir(into))?;
        let begin = format!("{package}_");
        let mut files = fs::read_dir(into)?.flatten().map(|entry| entry.path());
        let is_it = |path: &PathBuf| path.file_name().is_some_and(|name| starts(name, &begin));
        files.find(is_it).with_context(|| format!("apt-get left no {begin}*"))
    }

    /// Downloads the files of Debian 12's source package `package` into the folder `into`.
    ///
    /// # Errors
    /// When there is no such package, or the download fails.
    pub fn source(&self, package: &str, into: &Path) -> Result<Vec<PathBuf>> {
        let stable = fs::read_to_string(self.stable_sources())?;
        let path = self.dir.join("sources/source.sources");
        fs::write(&path, of_release(&stable)?.replace("Types: deb", "Types: deb-src"))?;
        let fetched = run(self.command("apt-get").arg("update")).and_then(|()| {
            let arguments = ["source", "--download-only", package];
            run(self.command("apt-get").args(arguments).current_dir(into))
        });
        // Its lists are large, and nothing else needs them.
        fs::remove_file(&path)?;
        fetched.with_context(|| format!("fetching the source of {package}"))?;
        Ok(fs::read_dir(into)?.flatten().map(|entry| entry.path()).collect())
    }

    /// Installs `package` on the host, as new as bookworm-backports has it.
    ///
    /// # Errors
    /// When this is not root, or apt-get fails.
    pub fn install_from_backports(&self, package: &str) -> Result<()> {
        say(&format!("installing {package} from backports"));
        let options = ["install", "-y", "--no-install-recommends", "-t", "bookworm-backports"];
        let mut command = self.command("apt-get");
        run(command.env("DEBIAN_FRONTEND", "noninteractive").args(options).arg(package))
    }

    fn configuration(&self) -> String {
        let dir = self.dir.display();
        format!(
            "Dir::Etc::sourcelist \"/dev/null\";\n\
             Dir::Etc::sourceparts \"{dir}/sources\";\n\
             Dir::Etc::preferencesparts \"/dev/null\";\n\
             Dir::State::lists \"{dir}/lists\";\n\
             Dir::Cache \"{dir}\";\n\
             Dir::Cache::pkgcache \"\";\n\
             Dir::Cache::srcpkgcache \"\";\n\
             APT::Sandbox::User \"root\";\n"
        )
    }
}

/// The lines of one version of a package, as `apt-cache show` prints them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stanza {
    /// The version.
    pub version: String,
    /// The `Depends` and `Pre-Depends` lines, names only.
    pub depends: Vec<String>,
}

impl Stanza {
    fn parse(text: &str) -> Option<Stanza> {
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or("")
        };
        let names = |list: &str| -> Vec<String> {
            let first = |part: &str| part.split_whitespace().next().map(str::to_owned);
            list.split([',', '|']).filter_map(first).collect()
        };
        let version = field("Version:").to_owned();
        let mut depends = names(field("Pre-Depends:"));
        depends.extend(names(field("Depends:")));
        (!version.is_empty()).then_some(Stanza { version, depends })
    }

    fn suite(&self) -> Suite {
        if self.version.contains("~bpo") { Suite::Backports } else { Suite::Stable }
    }
}

fn is_newer(version: &str, than: &str) -> bool {
    let compare = ["--compare-versions", version, "gt", than];
    Command::new("dpkg").args(compare).status().is_ok_and(|status| status.success())
}

/// The host's Debian 12 sources as deb822 text; Debian's own archive when the host has none.
fn host_sources(etc: &Path) -> Result<String> {
    let mut files = vec![etc.join("sources.list")];
    if let Ok(entries) = fs::read_dir(etc.join("sources.list.d")) {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let mut stanzas = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => stanzas.extend(deb822(&text)),
            Some("list") => stanzas.extend(text.lines().filter_map(one_line)),
            _ => {}
        }
    }
    stanzas.retain(|stanza| suites(stanza).any(|suite| suite.starts_with("bookworm")));
    Ok(if stanzas.is_empty() { FALLBACK.to_owned() } else { stanzas.join("\n") })
}

/// The enabled binary stanzas of a deb822 file, without comments, Debian archives only.
fn deb822(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let plain: String = lines.flat_map(|line| [line, "\n"]).collect();
    let keep = |stanza: &&str| {
        let enabled = !stanza.lines().any(|line| line.eq_ignore_ascii_case("Enabled: no"));
        enabled && stanza.contains("Types: deb") && is_debian(stanza)
    };
    let parts = plain.split("\n\n").map(str::trim).filter(keep);
    parts.map(|stanza| format!("{stanza}\n")).collect()
}

/// A line `deb [options] URI suite components` of an old-style sources file, as deb822.
fn one_line(line: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb ")?.trim();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(bracket) => bracket.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let components: Vec<&str> = words.collect();
    let key = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    let signed = key.map(|key| format!("Signed-By: {key}\n")).unwrap_or_default();
    let stanza = format!(
        "Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: {}\n{signed}",
        components.join(" ")
    );
    is_debian(&stanza).then_some(stanza)
}

/// Whether a stanza is Debian's own archive: other archives also name their suites bookworm.
fn is_debian(stanza: &str) -> bool {
    let uri = stanza.lines().find_map(|line| line.strip_prefix("URIs:")).unwrap_or("");
    uri.split('/').any(|part| part.trim() == "debian" || part.trim() == "debian-security")
}

fn suites(stanza: &str) -> impl Iterator<Item = &str> {
    let line = stanza.lines().find_map(|line| line.strip_prefix("Suites:")).unwrap_or("");
    line.split_whitespace()
}

/// The stanza of bookworm-backports that goes with the host's stanza of bookworm.
fn backports(stable: &str) -> Result<String> {
    with_suite(stable, "bookworm-backports")
}

/// The stanza of bookworm as it was released, without its updates.
fn of_release(stable: &str) -> Result<String> {
    with_suite(stable, "bookworm")
}

/// The host's stanza of bookworm for another suite of the same archive.
fn with_suite(stable: &str, suite: &str) -> Result<String> {
    let of_main = |stanza: &&str| suites(stanza).any(|suite| suite == "bookworm");
    let Some(stanza) = stable.split("\n\n").find(of_main) else {
        bail!("the host's apt sources have no suite bookworm");
    };
    let replace = |line: &str| match line.starts_with("Suites:") {
        true => format!("Suites: {suite}\n"),
        false => format!("{line}\n"),
    };
    Ok(stanza.lines().map(replace).collect())
}

fn starts(name: &std::ffi::OsStr, with: &str) -> bool {
    name.to_string_lossy().starts_with(with)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_with_options_becomes_a_stanza() {
        let line = "deb [arch=amd64 signed-by=/k.gpg] http://example.org/debian bookworm main x";
        let stanza = one_line(line).unwrap();
        assert!(stanza.contains("URIs: http://example.org/debian\n"));
        assert!(stanza.contains("Components: main x\n"));
        assert!(stanza.contains("Signed-By: /k.gpg\n"));
        assert_eq!(one_line("deb-src http://example.org/debian bookworm main"), None);
        assert_eq!(one_line("# deb http://example.org/debian bookworm main"), None);
        assert_eq!(one_line("deb https://example.org/other bookworm main"), None);
    }

    #[test]
    fn backports_keeps_archive_and_key() {
        let stanza = backports(FALLBACK).unwrap();
        assert!(stanza.contains("Suites: bookworm-backports\n"));
        assert!(stanza.contains("Signed-By: /usr/share/keyrings"));
        assert!(backports("Suites: trixie\n").is_err());
    }

    #[test]
    fn deb822_drops_comments_and_disabled_stanzas() {
        let text = format!("# c\n{FALLBACK}\nEnabled: no\n{FALLBACK}");
        assert_eq!(deb822(&text).len(), 1);
    }

    #[test]
    fn stanza_parse_reads_version_and_names() {
        let stanza = Stanza::parse("Package: a\nVersion: 2~bpo12\nDepends: b (= 1), c | d\n");
        let stanza = stanza.unwrap();
        assert_eq!(stanza.depends, ["b", "c", "d"]);
        assert_eq!(stanza.suite(), Suite::Backports);
    }
}
