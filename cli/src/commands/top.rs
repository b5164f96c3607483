//! `mobula top`: the cluster on one screen, as it changes.

use crate::commands::ask::looking;
use crate::config::Settings;
use crate::exit::{self, Failure, Outcome};
use crate::output::bytes;
use mobula_look::Look;
use mobula_look::state::State;
use mobula_look::verdict::Health;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table, Wrap};
use ratatui::{DefaultTerminal, Frame};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

/// The screen is drawn anew so often.
const DRAWN_EVERY: Duration = Duration::from_millis(1000);
/// Keys are looked for so often.
const KEYS_EVERY: Duration = Duration::from_millis(50);
/// Rates that are remembered for the curve.
const RATES_MAX: usize = 300;

/// What is between two looks.
#[derive(Default)]
struct Rates {
    /// Attempts ended so far, by life of a node.
    ended: BTreeMap<u64, u64>,
    at: Option<Instant>,
    /// Tasks a second, newest last.
    all: VecDeque<u64>,
}

impl Rates {
    /// A node that is new, or began anew, adds nothing at first.
    fn note(&mut self, state: &State, now: Instant) {
        let ended: BTreeMap<u64, u64> =
            state.totals.iter().map(|node| (node.incarnation, node.ended)).collect();
        if let Some(at) = self.at {
            let of = |(node, ended): (&u64, &u64)| Some(ended.saturating_sub(*self.ended.get(node)?));
            let tasks: u64 = ended.iter().filter_map(of).sum();
            let seconds = now.duration_since(at).as_secs_f64().max(0.001);
            if self.all.len() == RATES_MAX {
                self.all.pop_front();
            }
            self.all.push_back((tasks as f64 / seconds) as u64);
        }
        (self.ended, self.at) = (ended, Some(now));
    }
}

/// Shows it until q, Esc or Ctrl-C.
pub fn run(settings: &Settings) -> Outcome {
    if !io::stdout().is_terminal() || settings.output.is_json {
        return Err(Failure::usage(
            "`mobula top` needs a terminal; for programs there is `mobula status --json`",
        ));
    }
    looking(settings, async |look: Look| {
        let mut terminal =
            ratatui::try_init().map_err(|error| format!("cannot use this terminal: {error}"))?;
        let shown = show(&mut terminal, &look).await;
        ratatui::restore();
        shown.map_err(|error| format!("cannot draw: {error}"))?;
        Ok(exit::OK)
    })
}

async fn show(terminal: &mut DefaultTerminal, look: &Look) -> io::Result<()> {
    let mut rates = Rates::default();
    loop {
        // Who does not answer must not keep the keys from being heard.
        let state = tokio::select! {
            state = look.state() => state,
            gone = asked_to_go() => return gone,
        };
        rates.note(&state, Instant::now());
        terminal.draw(|frame| draw(frame, &state, &rates))?;
        let until = Instant::now() + DRAWN_EVERY;
        while Instant::now() < until {
            if wants_to_go()? {
                return Ok(());
            }
            tokio::time::sleep(KEYS_EVERY).await;
        }
    }
}

async fn asked_to_go() -> io::Result<()> {
    while !wants_to_go()? {
        tokio::time::sleep(KEYS_EVERY).await;
    }
    Ok(())
}

fn wants_to_go() -> io::Result<bool> {
    while event::poll(Duration::ZERO)? {
        if let Event::Key(key) = event::read()? {
            let interrupts = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if interrupts || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// So many lines in a box with a heading.
fn lines(count: usize) -> Constraint {
    Constraint::Length(u16::try_from(count).unwrap_or(u16::MAX).saturating_add(3))
}

fn draw(frame: &mut Frame<'_>, state: &State, rates: &Rates) {
    let heights = [
        Constraint::Length(3),
        lines(state.shards.len()),
        Constraint::Length(7),
        lines(state.nodes.iter().filter(|node| node.state == "alive").count()),
        Constraint::Min(4),
        Constraint::Length(1),
    ];
    let [verdict, shards, curve, nodes, tasks, foot] = Layout::vertical(heights).areas(frame.area());
    draw_verdict(frame, verdict, state);
    draw_shards(frame, shards, state);
    draw_rates(frame, curve, rates);
    draw_nodes(frame, nodes, state);
    draw_tasks(frame, tasks, state);
    frame.render_widget(Paragraph::new("q: leave"), foot);
}

fn draw_verdict(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let color = match state.verdict.health {
        Health::Healthy => Color::Green,
        Health::Degraded => Color::Yellow,
        Health::Unavailable => Color::Red,
    };
    let text = format!("{}; {} more heads may fail", state.says, state.verdict.heads_may_fail);
    let text = Paragraph::new(text).style(Style::new().fg(color)).wrap(Wrap { trim: true });
    frame.render_widget(text.block(Block::bordered().title(" mobula ")), area);
}

fn bold<'a>(cells: impl IntoIterator<Item = String>) -> Row<'a> {
    Row::new(cells.into_iter().map(Cell::from)).style(Style::new().add_modifier(Modifier::BOLD))
}

fn draw_shards(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let heads = state.heads.iter().map(|head| match head.head {
        Some(id) => format!("head {id}"),
        None => head.address.clone(),
    });
    let rows = state.shards.iter().map(|shard| {
        let replicas = shard.replicas.iter().map(|replica| {
            let (text, color) = match replica.role {
                "leader" => ("leader".to_owned(), Color::LightBlue),
                "follower" => (format!("+{}", replica.behind), Color::Gray),
                other => (other.to_owned(), Color::Red),
            };
            Cell::from(text).style(Style::new().fg(color))
        });
        let figures = [shard.applied.to_string(), shard.term.to_string(), shard.tasks.to_string()];
        Row::new(
            [Cell::from(shard.shard.to_string())].into_iter().chain(replicas).chain(figures.map(Cell::from)),
        )
    });
    let heading =
        ["shard".to_owned()].into_iter().chain(heads).chain(["applied", "term", "tasks"].map(str::to_owned));
    let widths = vec![Constraint::Length(12); state.heads.len() + 4];
    let table = Table::new(rows, widths).header(bold(heading));
    frame.render_widget(table.block(Block::bordered().title(" shards by heads ")), area);
}

fn draw_rates(frame: &mut Frame<'_>, area: Rect, rates: &Rates) {
    let room = usize::from(area.width.saturating_sub(2));
    let shown: Vec<u64> = rates.all.iter().skip(rates.all.len().saturating_sub(room)).copied().collect();
    let title = format!(" tasks a second: {} ", rates.all.back().copied().unwrap_or(0));
    let curve = Sparkline::default().data(shown).style(Style::new().fg(Color::LightBlue));
    frame.render_widget(curve.block(Block::bordered().title(title)), area);
}

fn draw_nodes(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let alive = state.nodes.iter().filter(|node| node.state == "alive");
    let rows = alive.map(|node| {
        let workers = state.workers.iter().filter(|worker| worker.node == node.node);
        let (all, busy) =
            workers.fold((0, 0), |(all, busy), w| (all + 1, busy + u32::from(w.state != "idle")));
        Row::new(
            [
                node.node.clone(),
                format!("{} of {}", node.cpus - node.cpus_free, node.cpus),
                node.queued.to_string(),
                format!("{} of {}", bytes(node.store_bytes_used), bytes(node.store_bytes)),
                format!("{busy} of {all}"),
            ]
            .map(Cell::from),
        )
    });
    let widths = [16, 14, 10, 24, 14].map(Constraint::Length);
    let heading = bold(["node", "CPUs in use", "queued", "store", "workers busy"].map(str::to_owned));
    let gone = state.nodes.iter().filter(|node| node.state != "alive").count();
    let title = format!(" nodes: {} gone ", gone);
    frame.render_widget(Table::new(rows, widths).header(heading).block(Block::bordered().title(title)), area);
}

fn draw_tasks(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let rows = state.functions.iter().map(|function| {
        let states: Vec<String> =
            function.states.iter().map(|(state, count)| format!("{count} {state}")).collect();
        Row::new([function.name.clone(), states.join(", ")].map(Cell::from))
    });
    let widths = [Constraint::Length(24), Constraint::Min(20)];
    let jobs = state.jobs.iter().filter(|job| job.state == "running").count();
    let all = if state.more { ", not all are counted" } else { "" };
    let title = format!(" tasks by function{all}; {jobs} jobs run ");
    frame.render_widget(Table::new(rows, widths).block(Block::bordered().title(title)), area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_look::state::NodeTotals;
    use mobula_look::verdict;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn state(ended: &[(u64, u64)]) -> State {
        let totals = ended.iter().map(|(incarnation, ended)| NodeTotals {
            node: format!("n{incarnation}"),
            incarnation: *incarnation,
            ended: *ended,
            again: 0,
            failed: 0,
            resident_bytes: 0,
        });
        let verdict = verdict::judge(&[]);
        State {
            now_ms: 0,
            cluster: String::new(),
            says: verdict.to_string(),
            verdict,
            heads: Vec::new(),
            shards: Vec::new(),
            nodes: Vec::new(),
            jobs: Vec::new(),
            workers: Vec::new(),
            functions: Vec::new(),
            more: false,
            totals: totals.collect(),
            silent: Vec::new(),
        }
    }

    #[test]
    fn a_node_that_begins_anew_makes_no_rate() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        rates.note(&state(&[(1, 1_000)]), start);
        rates.note(&state(&[(1, 1_100), (2, 5_000)]), start + Duration::from_secs(1));
        rates.note(&state(&[(2, 5_050)]), start + Duration::from_secs(2));
        assert_eq!(rates.all, [100, 50]);
    }

    #[test]
    fn it_is_drawn_even_if_nobody_answers_and_there_is_no_room() {
        for (width, height) in [(80, 24), (3, 2)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("in memory");
            let drawn =
                terminal.draw(|frame| draw(frame, &state(&[]), &Rates::default())).expect("in memory");
            let text: String = drawn.buffer.content().iter().map(|cell| cell.symbol()).collect();
            assert!(width < 80 || text.contains("no head answers"), "{text}");
        }
    }
}
