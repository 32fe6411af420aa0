//! Wrong usage in one line, and what long help ends with.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use vmm::ExitStatus;

/// The table of exit statuses for long help.
pub fn exit_statuses() -> String {
    let mut text = String::from("Exit status:\n");
    for (status, meaning) in ExitStatus::TABLE {
        text.push_str(&format!("  {:>3}  {meaning}\n", status as u8));
    }
    text.push_str("  odd  (VALUE << 1) | 1 after the guest wrote VALUE to the --debug-exit port\n");
    text
}

/// Prints help where it was asked for, else one line that says what is wrong.
pub fn report(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Nobody reads it if this fails.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    eprintln!("doppel: {}", one_line(error));
    (ExitStatus::Configuration as u8).into()
}

fn one_line(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "no verb given; see `doppel --help`".into();
    }
    let text = error.render().to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<_> = paragraph.split_whitespace().collect();
    let message = words.join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let similar = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand]
        .into_iter()
        .find_map(|kind| match error.get(kind)? {
            ContextValue::String(name) => Some(name.clone()),
            ContextValue::Strings(names) => names.first().cloned(),
            _ => None,
        });
    let advice = match similar {
        Some(name) => format!("did you mean {name}?"),
        None => match std::env::args().nth(1) {
            Some(verb)
                if error.kind() != ErrorKind::InvalidSubcommand && !verb.starts_with('-') =>
            {
                format!("see `doppel {verb} --help`")
            }
            _ => "see `doppel --help`".into(),
        },
    };
    format!("{message}; {advice}")
}
