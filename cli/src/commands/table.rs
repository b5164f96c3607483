//! Rows as a table: columns as wide as what stands in them.

use crate::output::bytes;
use mobula_look::filter::text;
use mobula_look::rows::Row;
use serde_json::Value;

/// What a column says, for people: bytes and times with their units.
fn cell(column: &str, value: &Value) -> String {
    match (column, value.as_u64()) {
        ("size", Some(count)) => bytes(count),
        (name, Some(count)) if name.contains("bytes") => bytes(count),
        _ => text(value),
    }
}

/// A heading and a line for each row.
///
/// # Errors
/// A row cannot be shown at all.
pub fn lines<R: Row>(rows: &[R], detail: bool) -> Result<Vec<String>, String> {
    let values: Vec<Value> =
        rows.iter().map(serde_json::to_value).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    let mut columns: Vec<String> = R::COLUMNS.iter().map(|column| (*column).to_owned()).collect();
    if let (true, Some(all)) = (detail, values.first().and_then(Value::as_object)) {
        let rest = all.keys().filter(|key| !R::COLUMNS.contains(&key.as_str())).cloned();
        columns.extend(rest.collect::<Vec<_>>());
    }
    let mut cells = vec![columns.iter().map(|column| column.to_uppercase()).collect::<Vec<_>>()];
    for value in &values {
        cells.push(columns.iter().map(|column| cell(column, &value[column])).collect());
    }
    Ok(aligned(&cells))
}

/// Lines in which every column begins at one place.
pub fn aligned(cells: &[Vec<String>]) -> Vec<String> {
    let columns = cells.iter().map(Vec::len).max().unwrap_or(0);
    let wide =
        |column: usize| cells.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| wide(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let padded = row.iter().zip(&widths).map(|(cell, wide)| format!("{cell:<wide$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    cells.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let cells = [["A", "B"], ["long", "x"], ["ü", "yy"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(aligned(&cells), ["A     B", "long  x", "ü     yy"]);
        assert_eq!(cell("own_bytes", &Value::from(1_500_000)), "1.5 MB");
        assert_eq!(cell("cpus", &Value::from(2.0)), "2");
    }
}
