//! `mobula config show`: every setting, and where it comes from.

use crate::args::{ConfigArgs, ConfigCommand, MemberArgs};
use crate::config::{DEFAULT_ADDRESS, DEFAULT_SHARDS, DEFAULT_STORE_MB, KEYS, Settings, TOKEN_VARIABLE};
use crate::exit::{self, Outcome};
use crate::say;
use clap::ArgMatches;
use clap::parser::ValueSource;
use mobula_node::LINGER;
use mobula_node::memory::MEMORY_FULL;
use serde::Serialize;
use std::time::Duration;

/// What a secret is shown as.
const HIDDEN: &str = "(hidden)";

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Setting {
    key: String,
    value: String,
    origin: String,
}

/// Prints the settings that a `start` with the same options would use.
pub fn run(settings: &Settings, args: &ConfigArgs, found: &ArgMatches) -> Outcome {
    let ConfigCommand::Show(show) = &args.what;
    let found = found.subcommand_matches("config").and_then(|found| found.subcommand_matches("show"));
    let member = settings.member(&show.member);
    let mut rows: Vec<Setting> = KEYS
        .into_iter()
        .map(|key| Setting {
            key: key.into(),
            value: value(settings, &member, key),
            origin: origin(settings, found, key),
        })
        .collect();
    if settings.token_file.is_none() {
        let is_set = settings.token.is_some();
        rows.push(Setting {
            key: "token".into(),
            value: if is_set { HIDDEN } else { "" }.into(),
            origin: if is_set { format!("environment {TOKEN_VARIABLE}") } else { "default".into() },
        });
    }
    for row in &rows {
        if show.origin {
            say!(settings.output, "{:<11} {:<32} {}", row.key, row.value, row.origin);
        } else {
            say!(settings.output, "{:<11} {}", row.key, row.value);
        }
    }
    settings.output.data(&rows);
    Ok(exit::OK)
}

fn value(settings: &Settings, member: &MemberArgs, key: &str) -> String {
    let text = |value: &Option<String>, default: &str| value.clone().unwrap_or_else(|| default.to_owned());
    let path = |value: &Option<std::path::PathBuf>| {
        value.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
    };
    match key {
        "address" if settings.addresses.is_empty() => DEFAULT_ADDRESS.into(),
        "address" => settings.addresses.join(","),
        "data_dir" => settings.data_dir.display().to_string(),
        "token_file" => path(&settings.token_file),
        "tls_dir" => path(&settings.tls_dir),
        "head" => member.head.to_string(),
        "join" => member.join.join(","),
        "listen" if member.head => text(&member.listen, DEFAULT_ADDRESS),
        "listen" => text(&member.listen, "any port towards the heads"),
        "advertise" => text(&member.advertise, ""),
        "shards" => member.shards.unwrap_or(DEFAULT_SHARDS).to_string(),
        "cpus" => member.cpus.map_or("all".into(), |cpus| cpus.to_string()),
        "name" => text(&member.name, &crate::commands::machine::host_name()),
        "gpus" => member.gpus.map_or("as many as are found".into(), |gpus| gpus.to_string()),
        "memory_full" => member.memory_full.unwrap_or((MEMORY_FULL * 100.0) as u8).to_string(),
        "memory_mb" => member.memory_mb.map_or("all but the store's".into(), |mb| mb.to_string()),
        "resource" => member.resource.join(","),
        "label" => member.label.join(","),
        "linger_ms" => member.linger_ms.map_or(LINGER, Duration::from_millis).as_millis().to_string(),
        "store_mb" => member.store_mb.unwrap_or(DEFAULT_STORE_MB).to_string(),
        "insecure" => member.insecure.to_string(),
        "no_repair" => member.no_repair.to_string(),
        "log_format" => text(&member.log_format, "text"),
        _ => String::new(),
    }
}

fn origin(settings: &Settings, found: Option<&ArgMatches>, key: &str) -> String {
    match found.and_then(|found| found.value_source(key)) {
        Some(ValueSource::CommandLine) => return format!("option --{}", key.replace('_', "-")),
        Some(ValueSource::EnvVariable) => return format!("environment MOBULA_{}", key.to_uppercase()),
        _ => {}
    }
    match &settings.from_file {
        Some((path, keys)) if keys.iter().any(|known| known == key) => format!("file {}", path.display()),
        _ => "default".into(),
    }
}
