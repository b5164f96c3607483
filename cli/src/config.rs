//! What applies to every command: the options, the configuration file, and their precedence
//! (option, environment variable, file, default).

use crate::args::Global;
use crate::exit::Failure;
use crate::output::Output;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Where a head listens, and where one is looked for, unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:6380";
/// Read from the working directory unless `--config` names another.
const CONFIG_FILE: &str = "mobula.toml";

/// The configuration file.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    #[serde(default)]
    address: Addresses,
    data_dir: Option<PathBuf>,
}

/// One address or a list of them.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "an address such as \"127.0.0.1:6380\", or a list of them")]
enum Addresses {
    One(String),
    Many(Vec<String>),
}

impl Default for Addresses {
    fn default() -> Self {
        Addresses::Many(Vec::new())
    }
}

/// What applies to the command at hand.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Addresses of heads that were named; empty when none was.
    pub addresses: Vec<String>,
    /// The directory of this machine's daemon.
    pub data_dir: PathBuf,
    /// Who reads the output.
    pub output: Output,
}

impl Settings {
    /// Puts options, environment and file together.
    ///
    /// # Errors
    /// The file cannot be read, or has a key or value that means nothing.
    pub fn new(global: &Global) -> Result<Settings, Failure> {
        let file = match &global.config {
            Some(path) => load(path)?,
            None if Path::new(CONFIG_FILE).exists() => load(Path::new(CONFIG_FILE))?,
            None => ConfigFile::default(),
        };
        let addresses = if global.address.is_empty() {
            match file.address {
                Addresses::One(address) => vec![address],
                Addresses::Many(addresses) => addresses,
            }
        } else {
            global.address.clone()
        };
        for address in &addresses {
            check_address(address).map_err(Failure::usage)?;
        }
        let data_dir = match global.data_dir.clone().or(file.data_dir) {
            Some(dir) => std::path::absolute(&dir).map_err(|e| {
                Failure::usage(format!("cannot use {} as data directory: {e}", dir.display()))
            })?,
            None => std::env::home_dir()
                .map(|home| home.join(".mobula"))
                .ok_or_else(|| Failure::usage("no home directory; name a data directory with --data-dir"))?,
        };
        Ok(Settings { addresses, data_dir, output: Output { is_json: global.json } })
    }
}

fn load(path: &Path) -> Result<ConfigFile, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::usage(format!("cannot read configuration {}: {e}", path.display())))?;
    parse(&text).map_err(|e| Failure::usage(format!("configuration {}: {e}", path.display())))
}

fn parse(text: &str) -> Result<ConfigFile, String> {
    toml::from_str(text).map_err(|e| {
        format!("{}; known keys are address (one or a list) and data_dir", e.to_string().trim_end())
    })
}

/// Checks that an address is `host:port`.
///
/// # Errors
/// It is not.
pub fn check_address(address: &str) -> Result<(), String> {
    let is_good =
        address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if is_good {
        Ok(())
    } else {
        Err(format!("\"{address}\" is no address; write host:port, such as {DEFAULT_ADDRESS}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_address_or_many() {
        let one = parse("address = \"a:1\"\ndata_dir = \"/d\"\n").expect("good");
        assert_eq!(one, ConfigFile { address: Addresses::One("a:1".into()), data_dir: Some("/d".into()) });
        let many = parse("address = [\"a:1\", \"b:2\"]").expect("good");
        assert_eq!(many.address, Addresses::Many(vec!["a:1".into(), "b:2".into()]));
        assert_eq!(parse("").expect("empty is fine"), ConfigFile::default());
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_refused() {
        let unknown = parse("adress = \"a:1\"").expect_err("a typing error");
        assert!(unknown.contains("adress") && unknown.contains("data_dir"), "{unknown}");
        let wrong = parse("address = 7").expect_err("a number");
        assert!(wrong.contains("127.0.0.1:6380"), "{wrong}");
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for good in ["127.0.0.1:6380", "head-1:80", "[::1]:6380"] {
            check_address(good).expect(good);
        }
        for bad in ["", "host", ":80", "host:", "host:99999", "host:x"] {
            check_address(bad).expect_err(bad);
        }
    }
}
