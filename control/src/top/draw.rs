//! The model on a screen.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table, TableState};

use super::model::{Model, Pane};
use super::rows::{Column, columns, scaled};

/// Lines of a pane besides its rows: its title and its headings.
const HEAD: u16 = 2;

const HELP: &str = "q quit  Tab pane  ↑↓ select  s sort by next column  r reverse  / filter  h history";

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let lines = |pane: Pane| model.shown(pane).len() as u16 + HEAD;
    let both = lines(Pane::Workers).max(lines(Pane::Fates)).min(10);
    let history = if model.history { 7 } else { 0 };
    let [status, services, servers, workers, past, events, help] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Max(lines(Pane::Services).max(4)),
        Constraint::Min(4),
        Constraint::Length(both),
        Constraint::Length(history),
        Constraint::Length(4),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let [workers, fates] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).spacing(2).areas(workers);

    frame.render_widget(status_line(model), status);
    table(frame, model, Pane::Services, "Services".to_owned(), services);
    let of = model.service().map(|service| format!(" of {}", service.name()));
    table(frame, model, Pane::Servers, format!("Real servers{}", of.unwrap_or_default()), servers);
    table(frame, model, Pane::Workers, "Workers".to_owned(), workers);
    table(frame, model, Pane::Fates, "Not forwarded".to_owned(), fates);
    if model.history {
        sparkline(frame, model, past);
    }
    frame.render_widget(last_events(model, events.height), events);
    frame.render_widget(bottom_line(model), help);
}

fn status_line(model: &Model) -> Paragraph<'_> {
    let known = model.last.as_ref().map(|last| {
        let table = last.counters.table;
        let percent = 100.0 * table.connections as f64 / table.slots.max(1) as f64;
        let servers = last.services.iter().flat_map(|service| &service.servers);
        let (up, all) = (servers.clone().filter(|server| server.up).count(), servers.count());
        format!(
            "generation {}  connections {} of {} slots ({percent:.1} %)  servers up {up}/{all}",
            last.counters.generation,
            scaled(table.connections as f64),
            scaled(table.slots as f64)
        )
    });
    match &model.trouble {
        Some(trouble) => {
            Paragraph::new(format!("RVS is not reachable, trying again: {trouble}")).bold().fg(Color::Red)
        }
        None => Paragraph::new(format!("RVS at {}  {}", model.socket, known.unwrap_or_default())).bold(),
    }
}

fn block(model: &Model, pane: Pane, title: String) -> Block<'static> {
    let view = model.view(pane);
    let filter = if view.filter.is_empty() { String::new() } else { format!(" with \"{}\"", view.filter) };
    let focus = model.pane == pane;
    let style = if focus { Style::new().fg(Color::Cyan).bold() } else { Style::new().dim() };
    let mark = if focus { "▶ " } else { "" };
    Block::new().borders(Borders::TOP).border_style(style).title(format!(" {mark}{title}{filter} "))
}

fn table(frame: &mut Frame<'_>, model: &Model, pane: Pane, title: String, area: Rect) {
    let (columns, rows, view) = (columns(pane), model.shown(pane), model.view(pane));
    let aligned = |text: String, number: bool| {
        Cell::new(Text::from(text).alignment(if number { Alignment::Right } else { Alignment::Left }))
    };
    let headings = columns.iter().enumerate().map(|(index, &(name, number))| {
        let arrow = match (index == view.sort, view.reversed) {
            (true, false) => "▾",
            (true, true) => "▴",
            (false, _) => "",
        };
        aligned(format!("{name}{arrow}"), number)
    });
    let selected = model.selected(pane, &rows);
    // What is far below the screen need not become a widget: of ten thousand servers some dozens are seen.
    let room = usize::from(area.height.saturating_sub(HEAD));
    let first = (selected + 1).saturating_sub(room);
    let line = |row: &super::rows::Row| {
        let cells =
            row.cells.iter().zip(columns).map(|(cell, &(_, number))| aligned(cell.text.clone(), number));
        Row::new(cells.collect::<Vec<_>>()).style(if row.alarm {
            Style::new().fg(Color::Red)
        } else {
            Style::new()
        })
    };
    let lines: Vec<Row<'_>> = rows.iter().skip(first).take(room).map(line).collect();
    let widths = fitting(columns, area.width);
    let table = Table::new(lines, widths)
        .header(Row::new(headings.collect::<Vec<_>>()).style(Style::new().add_modifier(Modifier::UNDERLINED)))
        .block(block(model, pane, title))
        .row_highlight_style(if model.pane == pane { Style::new().reversed() } else { Style::new().bold() });
    let mut state = TableState::new().with_selected(selected.checked_sub(first).filter(|_| !rows.is_empty()));
    frame.render_stateful_widget(table, area, &mut state);
}

/// The widths of the first columns, as many as there is room for: half a number would be a wrong one.
fn fitting(columns: &[Column], width: u16) -> Vec<Constraint> {
    let widths = columns.iter().map(|&(name, number)| match (name, number) {
        ("service", _) => 25,
        ("server", _) => 21,
        ("worker", _) => 12,
        ("fate", _) => 8,
        ("sched" | "state", _) => 6,
        (_, true) => (name.chars().count() as u16 + 1).max(7),
        (_, false) => 10,
    });
    let mut used = 0;
    let fitting = widths.take_while(|column| {
        used += column + 1;
        used <= width + 1
    });
    // Reasons are texts, and take what is left.
    let constraint = |(column, &(name, _)): (u16, &Column)| match name {
        "reason" => Constraint::Fill(1),
        _ => Constraint::Length(column),
    };
    fitting.zip(columns).map(constraint).collect()
}

fn sparkline(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let Some((name, history)) = model.selected_history() else { return };
    let what = if model.pane == Pane::Workers { "load in percent" } else { "packets/s" };
    let most = history.iter().max().copied().unwrap_or(0);
    // The newest is at the right, and what has no room is old.
    let from = history.len().saturating_sub(usize::from(area.width));
    let title = format!(" {what} of {name}: now {}, at most {} ", latest(&history), scaled(most as f64));
    let block = Block::new().borders(Borders::TOP).title(title);
    frame.render_widget(Sparkline::default().data(&history[from..]).block(block), area);
}

fn latest(history: &[u64]) -> String {
    scaled(history.last().copied().unwrap_or(0) as f64)
}

fn last_events(model: &Model, height: u16) -> Paragraph<'_> {
    let room = usize::from(height.saturating_sub(1));
    let skip = model.events.len().saturating_sub(room);
    let lines = model.events.iter().skip(skip).map(|event| {
        // The date is that of today, or the event is of no interest here.
        let time = event.time.get(11..19).unwrap_or(&event.time);
        Line::from(format!("{time}  {}", event.text.lines().collect::<Vec<_>>().join(" | ")))
    });
    Paragraph::new(lines.collect::<Vec<_>>()).block(Block::new().borders(Borders::TOP).title(" Events "))
}

fn bottom_line(model: &Model) -> Paragraph<'_> {
    if model.typing {
        let filter = &model.view(model.pane).filter;
        Paragraph::new(format!("filter: {filter}_  (Enter keeps it, Escape removes it)"))
    } else {
        Paragraph::new(HELP).dim()
    }
}
