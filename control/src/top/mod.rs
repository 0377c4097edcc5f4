//! `rvs top`: what a running router does, as it does it.
//!
//! It asks the admin API once a second and knows nothing that others could not ask as well. What is shown is a pure
//! function of what was answered and which keys were pressed: `model` has both, `rows` makes tables of it, `draw`
//! puts them on a screen, and none of them knows of a terminal or a clock. This file has the terminal and the clock.
//!
//! The terminal is given back whatever ends the program: `q`, a signal, an error, a panic. If rvs goes away, that is shown
//! above the last that was known, and asking goes on.

mod draw;
mod model;
mod rows;
#[cfg(test)]
mod tests;

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use futures_util::StreamExt;
use ratatui::backend::TestBackend;
use ratatui::{DefaultTerminal, Terminal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use self::model::{Flow, Key, Model, Sample};
use crate::admin::client::{Client, Heard, Place};

/// From one look to the next.
const PERIOD: Duration = Duration::from_secs(1);

/// How long rvs may take to answer before that is said.
const PATIENCE: Duration = Duration::from_secs(3);

/// A frame for no terminal: columns and rows.
const PAGE: (u16, u16) = (132, 50);

/// Shows what the router does until somebody has seen enough.
pub async fn watch(client: Client, socket: &str) -> Result<()> {
    ensure!(
        std::io::stdout().is_terminal(),
        "stdout is no terminal; expected one, or --once for a single frame as text"
    );
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let mut model = Model::new(socket);
    let mut screen = Screen::enter()?;
    let mut events = EventStream::new();
    let (sender, mut samples) = mpsc::channel(1);
    // Beside the keys, which must not wait for a router that does not answer. Ends with the runtime at the latest.
    let asking = tokio::spawn(ask(client, sender));
    let result = loop {
        screen.0.draw(|frame| draw::draw(frame, &model)).context("cannot draw")?;
        tokio::select! {
            Some(sample) = samples.recv() => match sample {
                Ok(sample) => model.take(sample),
                Err(error) => model.fail(format!("{error:#}")),
            },
            event = events.next() => match event {
                // Anything else, a new size for one, is a reason to draw.
                Some(Ok(event)) => if key_of(&event).is_some_and(|key| model.press(key) == Flow::Quit) {
                    break Ok(());
                },
                Some(Err(error)) => break Err(error).context("cannot read keys"),
                None => break Ok(()),
            },
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = hangup.recv() => break Ok(()),
        }
    };
    asking.abort();
    result
}

/// One frame as text, after a period's worth of rates.
pub async fn once(client: Client, socket: &str) -> Result<String> {
    let mut model = Model::new(socket);
    let mut place = Place::default();
    let start = Instant::now();
    for at in [start, start + PERIOD] {
        tokio::time::sleep_until(at).await;
        model.take(sample(&client, start, &mut place).await?);
    }
    let (width, height) = match std::io::stdout().is_terminal() {
        true => crossterm::terminal::size().unwrap_or(PAGE),
        false => PAGE,
    };
    text(&model, width, height)
}

/// What a screen of this size shows.
fn text(model: &Model, width: u16, height: u16) -> Result<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).context("cannot draw")?;
    terminal.draw(|frame| draw::draw(frame, model)).context("cannot draw")?;
    let buffer = terminal.backend().buffer();
    let line = |row| (0..width).map(move |column| buffer[(column, row)].symbol()).collect::<String>();
    Ok((0..height).map(|row| format!("{}\n", line(row).trim_end())).collect())
}

/// Asks once a period, until nobody takes the answers.
async fn ask(client: Client, sender: mpsc::Sender<Result<Sample>>) {
    let start = Instant::now();
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut place = Place::default();
    loop {
        ticks.tick().await;
        let answer = match timeout(PATIENCE, sample(&client, start, &mut place)).await {
            Ok(answer) => answer,
            Err(_) => Err(anyhow::anyhow!("no answer within {} s", PATIENCE.as_secs())),
        };
        if sender.send(answer).await.is_err() {
            return;
        }
    }
}

/// Events are those after `place`, which goes along once they are all here.
async fn sample(client: &Client, start: Instant, place: &mut Place) -> Result<Sample> {
    let (services, counters) = (client.services().await?, client.counters().await?);
    let seconds = start.elapsed().as_secs_f64();
    let (mut events, mut reached) = (Vec::new(), place.clone());
    let each = |heard| {
        // Of another router the events begin anew; that it has started is one of them.
        if let Heard::Event(event) = heard {
            events.push(event);
        }
        Ok(())
    };
    client.events(&mut reached, false, each).await?;
    *place = reached;
    Ok(Sample { seconds, services, counters, events })
}

/// The terminal, as long as it is ours.
struct Screen(DefaultTerminal);

impl Screen {
    /// Also sees to it that a panic gives the terminal back before it says what it is.
    fn enter() -> Result<Screen> {
        Ok(Screen(ratatui::try_init().context("cannot use the terminal")?))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn key_of(event: &Event) -> Option<Key> {
    let Event::Key(KeyEvent { code, modifiers, kind, .. }) = event else { return None };
    if *kind == KeyEventKind::Release {
        return None;
    }
    Some(match code {
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => Key::Interrupt,
        KeyCode::Char(typed) => Key::Char(*typed),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Tab => Key::Tab,
        KeyCode::BackTab => Key::BackTab,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        _ => return None,
    })
}
