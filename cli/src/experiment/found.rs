//! What most experiments find: rows that were measured, figures with what is asked of them, and what was wrong.

use super::stats::Estimate;
use super::told::{Lines, Told};
use crate::bench::table::Aim;
use crate::{exit, say};
use serde_json::{Map, Value, json};

/// One value of a row.
#[derive(Clone, Debug)]
pub enum Cell {
    /// What the row is about.
    Text(String),
    /// A number that was counted.
    Count(u64),
    /// A number that was measured once.
    Number(f64),
    /// A number that was measured several times.
    Repeated(Estimate),
}

/// A figure, and what is asked of it.
#[derive(Clone, Debug)]
struct Figure {
    name: String,
    value: Estimate,
    unit: &'static str,
    aim: Option<Aim>,
}

/// What was found.
pub struct Found {
    name: &'static str,
    what: String,
    columns: &'static [&'static str],
    rows: Vec<Vec<Cell>>,
    figures: Vec<Figure>,
    wrong: Vec<String>,
    /// What a reader must know to judge it.
    notes: Vec<String>,
    /// The drawing.
    pub svg: String,
}

impl Found {
    /// Nothing yet: the experiment, what it measured on what, and the columns of its rows.
    pub fn new(name: &'static str, what: String, columns: &'static [&'static str]) -> Found {
        let (rows, figures, wrong, notes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Found { name, what, columns, rows, figures, wrong, notes, svg: String::new() }
    }

    /// Adds a row, as long as there are columns.
    pub fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    /// Adds a figure of which nothing is asked.
    pub fn figure(&mut self, name: &str, value: impl Into<Estimate>, unit: &'static str) {
        self.figures.push(Figure { name: name.into(), value: value.into(), unit, aim: None });
    }

    /// Adds a figure of which something is asked. The first of these that is not so, or the first,
    /// stands for the experiment.
    pub fn aimed(&mut self, name: &str, value: impl Into<Estimate>, unit: &'static str, aim: Aim) {
        self.figures.push(Figure { name: name.into(), value: value.into(), unit, aim: Some(aim) });
    }

    /// Something that must never be: a wrong value, a failed task.
    pub fn wrong(&mut self, what: impl IntoIterator<Item = String>) {
        self.wrong.extend(what);
    }

    /// Something a reader must know to judge it.
    pub fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    /// The exit code.
    fn code(&self) -> u8 {
        match (self.wrong.is_empty(), self.figures.iter().any(Figure::is_missed)) {
            (false, _) => exit::FAILED,
            (true, true) => exit::FIGURE_MISSED,
            (true, false) => exit::OK,
        }
    }

    /// All that is told of it.
    pub fn told(self) -> Told {
        let shown = |figure: &Figure| format!("{} {}", figure.value, figure.unit).trim_end().to_owned();
        let mut aimed = self.figures.iter().filter(|figure| figure.aim.is_some());
        // What missed its aim is what has to be said.
        let first = aimed.clone().find(|figure| figure.is_missed()).or_else(|| aimed.next());
        let figure = first.map(|figure| {
            let aim = figure.aim.map(Aim::shown).unwrap_or_default();
            (format!("{}: {}", figure.name, shown(figure)), aim)
        });
        Told {
            code: self.code(),
            lines: self.lines(),
            data: self.data(),
            csv: self.csv(),
            svg: self.svg,
            figure: figure.unwrap_or_default(),
        }
    }

    fn lines(&self) -> Lines {
        let mut lines = Lines::default();
        say!(lines, "{}: {}", self.name, self.what);
        let texts: Vec<Vec<String>> =
            self.rows.iter().map(|row| row.iter().map(Cell::shown).collect()).collect();
        let width = |at: usize| {
            let cells = texts.iter().map(|row| row[at].chars().count());
            cells.chain([self.columns[at].chars().count()]).max().unwrap_or(0)
        };
        let line = |cells: Vec<&str>| {
            let padded = cells.iter().enumerate().map(|(at, cell)| match at {
                0 => format!("{cell:<width$}", width = width(at)),
                _ => format!("{cell:>width$}", width = width(at)),
            });
            padded.collect::<Vec<_>>().join("  ")
        };
        say!(lines, "  {}", line(self.columns.to_vec()));
        for row in &texts {
            say!(lines, "  {}", line(row.iter().map(String::as_str).collect()));
        }
        for figure in &self.figures {
            let Figure { name, value, unit, aim } = figure;
            let verdict = match aim {
                Some(aim) if figure.is_missed() => format!("   aim {}: MISSED", aim.shown()),
                Some(aim) => format!("   aim {}: met", aim.shown()),
                None => String::new(),
            };
            say!(lines, "  {name}: {value} {unit}{verdict}");
        }
        self.wrong.iter().take(20).for_each(|wrong| say!(lines, "  ! {wrong}"));
        self.notes.iter().for_each(|note| say!(lines, "  note: {note}"));
        say!(lines, "{}", if self.code() == exit::OK { "passed" } else { "not passed" });
        lines
    }

    fn data(&self) -> Value {
        let figures: Vec<Value> = self.figures.iter().map(Figure::data).collect();
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let fields = row.iter().zip(self.columns).flat_map(|(cell, name)| cell.fields(name));
                Value::Object(fields.collect::<Map<_, _>>())
            })
            .collect();
        json!({
            "experiment": self.name,
            "what": self.what,
            "cpus": std::thread::available_parallelism().map_or(1, usize::from),
            "optimized": !cfg!(debug_assertions),
            "figures": figures,
            "rows": rows,
            "wrong": self.wrong,
            "notes": self.notes,
            "passed": self.code() == exit::OK,
        })
    }

    /// The rows; of what was measured several times, also the confidence interval.
    fn csv(&self) -> String {
        let Some(first) = self.rows.first() else { return String::new() };
        let fields = |row: &[Cell]| {
            row.iter().zip(self.columns).flat_map(|(cell, name)| cell.fields(name)).collect::<Vec<_>>()
        };
        let names: Vec<String> = fields(first).into_iter().map(|(name, _)| field(&name.into())).collect();
        let mut text = names.join(",") + "\n";
        for row in &self.rows {
            let values: Vec<String> = fields(row).iter().map(|(_, value)| field(value)).collect();
            text += &(values.join(",") + "\n");
        }
        text
    }
}

/// A value as CSV has it.
fn field(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => format!("\"{}\"", text.replace('"', "\"\"")),
        number => number.to_string(),
    }
}

impl Figure {
    /// Whether something is asked of it that is not so.
    fn is_missed(&self) -> bool {
        self.aim.is_some_and(|aim| !aim.is_met(self.value.mean))
    }

    fn data(&self) -> Value {
        let mut data = json!({ "name": self.name, "value": self.value.mean, "ci95": self.value.ci95, "unit": self.unit });
        if let Some(aim) = self.aim {
            data["aim"] = serde_json::to_value(aim).expect("an aim has text keys");
            data["met"] = (!self.is_missed()).into();
        }
        data
    }
}

impl Cell {
    fn shown(&self) -> String {
        match self {
            Cell::Text(text) => text.clone(),
            Cell::Count(count) => count.to_string(),
            Cell::Number(number) => Estimate::from(*number).to_string(),
            Cell::Repeated(estimate) => estimate.to_string(),
        }
    }

    fn fields(&self, name: &str) -> Vec<(String, Value)> {
        match self {
            Cell::Text(text) => vec![(name.into(), text.clone().into())],
            Cell::Count(count) => vec![(name.into(), (*count).into())],
            Cell::Number(number) => vec![(name.into(), (*number).into())],
            Cell::Repeated(of) => {
                vec![(name.into(), of.mean.into()), (format!("{name} ci95"), of.ci95.into())]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Found {
        let mut found = Found::new("test", "two rows".into(), &["size", "ms"]);
        found.row(vec![Cell::Text("a \"b\"".into()), Cell::Repeated(Estimate::of(&[1.0, 3.0]))]);
        found.row(vec![Cell::Text("c".into()), Cell::Repeated(Estimate::of(&[2.0, 2.0]))]);
        found.aimed("ratio", 0.5, "×", Aim::AtMost(1.0));
        found
    }

    #[test]
    fn the_exit_code_says_what_is_worst() {
        assert_eq!(found().told().code, exit::OK);
        let mut missed = found();
        missed.aimed("rate", 1.0, "/s", Aim::AtLeast(2.0));
        assert_eq!(missed.code(), exit::FIGURE_MISSED);
        missed.wrong(["a value".to_owned()]);
        assert_eq!(missed.code(), exit::FAILED);
    }

    #[test]
    fn rows_become_json_and_csv_with_their_intervals() {
        let told = found().told();
        assert_eq!(told.data["rows"][0]["ms"], 2.0);
        assert_eq!(told.data["rows"][1]["ms ci95"], 0.0);
        assert_eq!(told.data["figures"][0]["met"], true);
        let lines: Vec<&str> = told.csv.lines().collect();
        assert_eq!(lines[0], "\"size\",\"ms\",\"ms ci95\"");
        assert!(lines[1].starts_with("\"a \"\"b\"\"\",2.0,"), "{}", lines[1]);
        assert!(lines[2].starts_with("\"c\",2.0,0"), "{}", lines[2]);
        assert_eq!(field(&Value::Null), "", "nothing is measured once with an interval");
        assert_eq!(told.figure, ("ratio: 0.500 ×".to_owned(), "≤ 1".to_owned()));
    }
}
