//! `rvs events`.

use std::io::{self, Write};

use clap::Args;

use super::{Exit, SocketArg, block_on, complain};
use crate::admin::api::Event;
use crate::admin::client::{Heard, Place};
use crate::admin::follow::{Until, follow};

#[derive(Debug, Args)]
pub(super) struct Events {
    #[command(flatten)]
    socket: SocketArg,
    /// Wait for more until rvs stops; if the connection breaks, connect again, without repeating or hiding an event
    #[arg(short, long)]
    follow: bool,
    /// With -f: when rvs stops, wait for it to come back
    #[arg(long, requires = "follow")]
    reconnect: bool,
    /// With -f: end when the connection breaks
    #[arg(long, requires = "follow", conflicts_with = "reconnect")]
    no_reconnect: bool,
    /// Only what came after the event with this number
    #[arg(long, value_name = "N")]
    since: Option<u64>,
    /// JSON, one object a line, as the admin API has it
    #[arg(long)]
    json: bool,
}

impl Events {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        let mut out = io::stdout().lock();
        let mut each = |event| {
            match self.json {
                true => {
                    serde_json::to_writer(&mut out, &event)?;
                    out.write_all(b"\n")?;
                }
                false => writeln!(out, "{}", line(&event))?,
            }
            // Whoever follows wants each when it happens.
            out.flush()
        };
        let (client, mut place) = (self.socket.client(), Place::after(self.since));
        let until = match (self.reconnect, self.no_reconnect) {
            (true, _) => Until::Interrupted,
            (_, true) => Until::Broken,
            _ => Until::Stopped,
        };
        block_on(async {
            if self.follow {
                let note = |note: &str| complain(format_args!("rvs: {note}"));
                return follow(&client, place, until, each, note).await;
            }
            let each = |heard| match heard {
                Heard::Begin { .. } => Ok(()),
                Heard::Event(event) => each(event),
            };
            client.events(&mut place, false, each).await
        })?;
        Ok(Exit::Ok)
    }
}

/// Number, time, and what has happened, in one line also if an error has several.
pub(super) fn line(event: &Event) -> String {
    let Event { sequence, time, text, .. } = event;
    let text: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    format!("{sequence:>6}  {time}  {}", text.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_an_event() {
        let event: Event = serde_json::from_str(
            r#"{"sequence": 7, "time": "2026-11-26T01:30:40.123Z", "event": "eclipse", "moon": {"full": true},
                "text": "no reload:\n  a.toml:1:1: port: missing\n\n  a.toml:2:1: colour: unknown\n"}"#,
        )
        .unwrap();
        assert_eq!(
            line(&event),
            "     7  2026-11-26T01:30:40.123Z  no reload: | a.toml:1:1: port: missing | a.toml:2:1: colour: unknown"
        );
        assert_eq!(event.details["moon"]["full"], true);
    }
}
