//! What is known, and what somebody wants to see of it.

use std::collections::{BTreeMap, VecDeque};

use super::rows::{self, Row};
use crate::admin::api;

/// Seconds of history.
const HISTORY: usize = 300;

/// Events that are kept to be shown.
const EVENTS: usize = 50;

/// Rows that a page key moves by.
const PAGE: isize = 10;

/// What the router has answered at one time.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// On a clock that only goes forward.
    pub(super) seconds: f64,
    pub(super) services: Vec<api::Service>,
    pub(super) counters: api::Counters,
    /// What has happened since the last sample.
    pub(super) events: Vec<api::Event>,
}

/// A part of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pane {
    Services,
    /// Those of the service that is selected.
    Servers,
    Workers,
    /// Where packets went that were not forwarded.
    Fates,
}

impl Pane {
    pub(super) const ALL: [Pane; 4] = [Pane::Services, Pane::Servers, Pane::Workers, Pane::Fates];

    fn step(self, by: usize) -> Pane {
        Pane::ALL[(self as usize + by) % Pane::ALL.len()]
    }
}

/// What can be pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Tab,
    BackTab,
    Enter,
    Escape,
    Backspace,
    Interrupt,
    Char(char),
}

/// Whether it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Continue,
    Quit,
}

/// How a pane is looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// The column that it is sorted by.
    pub(super) sort: usize,
    pub(super) reversed: bool,
    /// Only rows that contain this.
    pub(super) filter: String,
    /// The key of a row; the first row's if that is not there.
    selected: Option<String>,
}

/// All of it.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) socket: String,
    pub(super) pane: Pane,
    views: [View; 4],
    /// Whether what is typed goes into the filter.
    pub(super) typing: bool,
    /// Whether the selected row's history is shown.
    pub(super) history: bool,
    pub(super) last: Option<Sample>,
    /// The sample before, to take rates from.
    before: Option<Sample>,
    /// Why the router cannot be asked, if so.
    pub(super) trouble: Option<String>,
    pub(super) events: VecDeque<api::Event>,
    histories: BTreeMap<(Pane, String), VecDeque<u64>>,
}

impl Model {
    pub(super) fn new(socket: &str) -> Model {
        let mut views: [View; 4] = Default::default();
        views[Pane::Fates as usize].sort = rows::FATES_RATE;
        Model {
            socket: socket.to_owned(),
            pane: Pane::Services,
            views,
            typing: false,
            history: false,
            last: None,
            before: None,
            trouble: None,
            events: VecDeque::new(),
            histories: BTreeMap::new(),
        }
    }

    /// The router has answered.
    pub(super) fn take(&mut self, sample: Sample) {
        self.trouble = None;
        self.events.extend(sample.events.iter().cloned());
        let surplus = self.events.len().saturating_sub(EVENTS);
        self.events.drain(..surplus);
        self.before = self.last.replace(sample);
        self.remember();
    }

    /// The router has not answered; what was known stays on the screen.
    pub(super) fn fail(&mut self, error: String) {
        self.trouble = Some(error);
    }

    /// Somebody has pressed a key.
    pub(super) fn press(&mut self, key: Key) -> Flow {
        match key {
            Key::Interrupt => return Flow::Quit,
            _ if self.typing => self.type_filter(key),
            Key::Char('q') => return Flow::Quit,
            Key::Up | Key::Char('k') => self.go(-1),
            Key::Down | Key::Char('j') => self.go(1),
            Key::PageUp => self.go(-PAGE),
            Key::PageDown => self.go(PAGE),
            Key::Home | Key::Char('g') => self.go(isize::MIN),
            Key::End | Key::Char('G') => self.go(isize::MAX),
            Key::Tab => self.pane = self.pane.step(1),
            Key::BackTab => self.pane = self.pane.step(Pane::ALL.len() - 1),
            Key::Char('s') => {
                let columns = rows::columns(self.pane).len();
                let view = self.view_mut();
                (view.sort, view.reversed) = ((view.sort + 1) % columns, false);
            }
            Key::Char('r') => self.view_mut().reversed ^= true,
            Key::Char('/') => self.typing = true,
            Key::Char('h') => self.history ^= true,
            Key::Escape => self.view_mut().filter.clear(),
            _ => {}
        }
        Flow::Continue
    }

    fn type_filter(&mut self, key: Key) {
        let filter = &mut self.views[self.pane as usize].filter;
        match key {
            Key::Char(typed) => filter.push(typed),
            Key::Backspace => drop(filter.pop()),
            Key::Escape => {
                filter.clear();
                self.typing = false;
            }
            Key::Enter | Key::Tab => self.typing = false,
            _ => {}
        }
    }

    fn go(&mut self, by: isize) {
        let rows = self.shown(self.pane);
        let to = self.selected(self.pane, &rows).saturating_add_signed(by).min(rows.len().saturating_sub(1));
        self.view_mut().selected = rows.into_iter().nth(to).map(|row| row.key);
    }

    pub(super) fn view(&self, pane: Pane) -> &View {
        &self.views[pane as usize]
    }

    fn view_mut(&mut self) -> &mut View {
        &mut self.views[self.pane as usize]
    }

    /// Where the selected row is among these.
    pub(super) fn selected(&self, pane: Pane, rows: &[Row]) -> usize {
        let key = self.view(pane).selected.as_ref();
        rows.iter().position(|row| Some(&row.key) == key).unwrap_or(0)
    }

    /// The service whose servers are shown.
    pub(super) fn service(&self) -> Option<&api::Service> {
        let rows = self.shown(Pane::Services);
        let key = &rows.get(self.selected(Pane::Services, &rows))?.key;
        self.last.as_ref()?.services.iter().find(|service| rows::name(service) == *key)
    }

    /// A pane's rows as they are shown: those that the filter lets through, sorted.
    pub(super) fn shown(&self, pane: Pane) -> Vec<Row> {
        let View { sort, reversed, filter, .. } = self.view(pane);
        let filter = filter.to_lowercase();
        let mut rows = self.rows(pane);
        rows.retain(|row| row.cells.iter().any(|cell| cell.text.to_lowercase().contains(&filter)));
        rows.sort_by(|one, other| {
            let order = one.cells[*sort].compare(&other.cells[*sort]);
            if *reversed { order.reverse() } else { order }
        });
        rows
    }

    fn rows(&self, pane: Pane) -> Vec<Row> {
        let Some(last) = &self.last else { return Vec::new() };
        match pane {
            Pane::Services => rows::services(&last.services),
            Pane::Servers => self.service().map(rows::servers).unwrap_or_default(),
            Pane::Workers => rows::workers(last, self.before.as_ref()),
            Pane::Fates => rows::fates(last, self.before.as_ref()),
        }
    }

    /// Adds to the history of each row; what is not there any more is forgotten.
    fn remember(&mut self) {
        let mut old = std::mem::take(&mut self.histories);
        for pane in Pane::ALL {
            for row in self.rows(pane) {
                let entry = (pane, row.key);
                let mut history = old.remove(&entry).unwrap_or_default();
                if history.len() == HISTORY {
                    history.pop_front();
                }
                history.push_back(row.level);
                self.histories.insert(entry, history);
            }
        }
    }

    /// What is selected, and its history, the newest last.
    pub(super) fn selected_history(&self) -> Option<(String, Vec<u64>)> {
        let rows = self.shown(self.pane);
        let row = rows.into_iter().nth(self.selected(self.pane, &self.shown(self.pane)))?;
        let history = self.histories.get(&(self.pane, row.key.clone()))?;
        Some((row.key, history.iter().copied().collect()))
    }
}
