//! Filters over rows, by the names of their columns, and what is found by the beginning of an id.

use crate::rows::Row;
use serde_json::Value;

/// `key=value` or `key!=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// A column.
    pub key: String,
    /// What it is to say.
    pub value: String,
    /// It is not to say that.
    pub not: bool,
}

impl std::str::FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Filter, String> {
        let (key, value) = text.split_once('=').ok_or_else(|| {
            format!("{text:?} is no filter; write COLUMN=VALUE or COLUMN!=VALUE, such as state=running")
        })?;
        let (key, not) = key.strip_suffix('!').map_or((key, false), |key| (key, true));
        Ok(Filter { key: key.into(), value: value.into(), not })
    }
}

impl Filter {
    /// Whether a row is admitted.
    ///
    /// # Errors
    /// It has no such column; says which there are.
    pub fn admits(&self, row: &Value) -> Result<bool, String> {
        let columns = row.as_object().ok_or("a row without columns")?;
        let found = columns.get(&self.key).ok_or_else(|| {
            let names: Vec<&str> = columns.keys().map(String::as_str).collect();
            format!("there is no column {:?}: there are {}", self.key, names.join(", "))
        })?;
        Ok((text(found) == self.value) != self.not)
    }
}

/// The value of a column, as it is shown.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(text).collect::<Vec<_>>().join(" "),
        Value::Object(all) => {
            all.iter().map(|(key, value)| format!("{key}={}", text(value))).collect::<Vec<_>>().join(" ")
        }
        Value::Null => String::new(),
        // Whole numbers without a point.
        Value::Number(number) => number.as_f64().map_or_else(String::new, |number| number.to_string()),
        Value::Bool(known) => known.to_string(),
    }
}

/// The rows that all filters admit.
///
/// # Errors
/// A filter names a column that rows do not have.
pub fn admitted<R: Row>(rows: Vec<R>, filters: &[Filter]) -> Result<Vec<R>, String> {
    let mut admitted = Vec::new();
    for row in rows {
        let as_value = serde_json::to_value(&row).map_err(|error| error.to_string())?;
        let mut takes = true;
        for filter in filters {
            takes &= filter.admits(&as_value)?;
        }
        if takes {
            admitted.push(row);
        }
    }
    Ok(admitted)
}

/// Candidates that are named when an id is not unique.
const NAMED_MAX: usize = 5;

/// The one row whose first id begins so, or one of whose ids is this.
///
/// # Errors
/// There is none, or there are several: says which.
pub fn the_one<R: Row>(rows: Vec<R>, id: &str, what: &str) -> Result<R, String> {
    let (mut whole, mut begun) = (Vec::new(), Vec::new());
    for row in rows {
        let ids = row.ids();
        if ids.iter().any(|known| known == id) {
            whole.push(row);
        } else if ids.first().is_some_and(|first| first.starts_with(id)) {
            begun.push(row);
        }
    }
    let mut found = if whole.is_empty() { begun } else { whole };
    match found.len() {
        1 => Ok(found.swap_remove(0)),
        0 => Err(format!("no {what} is called {id:?}, and the id of none begins so")),
        many => {
            let ids: Vec<String> = found.iter().take(NAMED_MAX).map(|row| row.ids().swap_remove(0)).collect();
            Err(format!("{many} {what}s are called so: say more of the id ({}…)", ids.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Serialize;

    #[derive(Debug, Serialize)]
    struct Named {
        id: String,
        cpus: f64,
    }

    impl Row for Named {
        const COLUMNS: &'static [&'static str] = &["id"];
        fn ids(&self) -> Vec<String> {
            vec![self.id.clone()]
        }
    }

    fn rows() -> Vec<Named> {
        ["aa1", "aa2", "b", "b2"].map(|id| Named { id: id.into(), cpus: 2.0 }).into()
    }

    #[test]
    fn filters_compare_what_is_shown_and_refuse_strange_columns() {
        let filter = |text: &str| text.parse::<Filter>().expect("one");
        assert_eq!(admitted(rows(), &[filter("cpus=2"), filter("id!=b")]).expect("there").len(), 3);
        assert!(admitted(rows(), &[filter("id=c")]).expect("there").is_empty());
        let why = admitted(rows(), &[filter("color=red")]).expect_err("strange");
        assert!(why.contains("cpus, id"), "{why}");
        assert!("state".parse::<Filter>().is_err());
    }

    #[test]
    fn a_beginning_must_be_of_one_only_and_a_whole_name_wins() {
        assert_eq!(the_one(rows(), "aa2", "thing").expect("whole").id, "aa2");
        assert_eq!(the_one(rows(), "b", "thing").expect("whole").id, "b");
        assert!(the_one(rows(), "aa", "thing").expect_err("two").contains("2 things"));
        assert!(the_one(rows(), "x", "thing").expect_err("none").contains("no thing"));
    }
}
