//! What applies to every command: the options, the configuration file, and their precedence
//! (option, environment variable, file, default).

use crate::args::{Global, MemberArgs};
use crate::exit::Failure;
use crate::output::Output;
use mobula_net::auth::Token;
use mobula_net::seam::SharedNet;
use mobula_net::tcp::TcpNet;
use mobula_net::tls::{Guarded, Tls};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a head listens, and where one is looked for, unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:6380";
/// Shards of a new cluster.
pub const DEFAULT_SHARDS: u32 = 4;
/// Shared memory of a node, MB.
pub const DEFAULT_STORE_MB: u64 = 512;
/// Read from the working directory unless `--config` names another.
const CONFIG_FILE: &str = "mobula.toml";
/// The variable that may hold the token itself.
pub const TOKEN_VARIABLE: &str = "MOBULA_TOKEN";
/// Every key of the file; the options have the same names, with dashes.
pub const KEYS: [&str; 21] = [
    "address",
    "data_dir",
    "token_file",
    "tls_dir",
    "head",
    "join",
    "listen",
    "advertise",
    "shards",
    "cpus",
    "name",
    "gpus",
    "memory_mb",
    "memory_full",
    "resource",
    "label",
    "store_mb",
    "linger_ms",
    "insecure",
    "no_repair",
    "log_format",
];
/// A key closer than this to a known one is taken for a typing error.
const SIMILAR: f64 = 0.7;

/// The configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ConfigFile {
    address: Words,
    data_dir: Option<PathBuf>,
    token_file: Option<PathBuf>,
    tls_dir: Option<PathBuf>,
    head: bool,
    join: Words,
    listen: Option<String>,
    advertise: Option<String>,
    shards: Option<u32>,
    cpus: Option<u32>,
    name: Option<String>,
    gpus: Option<u32>,
    memory_mb: Option<u64>,
    memory_full: Option<u8>,
    resource: Words,
    label: Words,
    store_mb: Option<u64>,
    linger_ms: Option<u64>,
    insecure: bool,
    no_repair: bool,
    log_format: Option<String>,
}

/// One word or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a text such as \"127.0.0.1:6380\", or a list of them")]
enum Words {
    One(String),
    Many(Vec<String>),
}

impl Default for Words {
    fn default() -> Self {
        Words::Many(Vec::new())
    }
}

impl Words {
    /// `given` wins.
    fn or(&self, given: &[String]) -> Vec<String> {
        match self {
            _ if !given.is_empty() => given.to_vec(),
            Words::One(word) => vec![word.clone()],
            Words::Many(words) => words.clone(),
        }
    }
}

/// What applies to the command at hand.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Addresses of heads that were named; empty when none was.
    pub addresses: Vec<String>,
    /// The directory of this machine's daemon.
    pub data_dir: PathBuf,
    /// Where the token is read from.
    pub token_file: Option<PathBuf>,
    /// The cluster token.
    pub token: Option<Token>,
    /// Where certificates are.
    pub tls_dir: Option<PathBuf>,
    /// Who reads the output.
    pub output: Output,
    file: ConfigFile,
    /// The file, and the keys it sets.
    pub from_file: Option<(PathBuf, Vec<String>)>,
}

impl Settings {
    /// Puts options, environment and file together.
    ///
    /// # Errors
    /// A file cannot be read, or has a key or value that means nothing.
    pub fn new(global: &Global) -> Result<Settings, Failure> {
        let path = match &global.config {
            Some(path) => Some(path.clone()),
            None => Some(PathBuf::from(CONFIG_FILE)).filter(|path| path.exists()),
        };
        let (file, from_file) = match path {
            Some(path) => {
                let (file, keys) = load(&path)?;
                (file, Some((path, keys)))
            }
            None => (ConfigFile::default(), None),
        };
        let addresses = file.address.or(&global.address);
        for address in &addresses {
            check_address(address).map_err(Failure::usage)?;
        }
        let absolute = |what: &str, path: PathBuf| {
            std::path::absolute(&path)
                .map_err(|e| Failure::usage(format!("cannot use {} as {what}: {e}", path.display())))
        };
        let data_dir = match global.data_dir.clone().or_else(|| file.data_dir.clone()) {
            Some(dir) => absolute("data directory", dir)?,
            None => std::env::home_dir()
                .map(|home| home.join(".mobula"))
                .ok_or_else(|| Failure::usage("no home directory; name a data directory with --data-dir"))?,
        };
        let token_file = global.token_file.clone().or_else(|| file.token_file.clone());
        let token_file = token_file.map(|path| absolute("token file", path)).transpose()?;
        let tls_dir = global.tls_dir.clone().or_else(|| file.tls_dir.clone());
        let tls_dir = tls_dir.map(|path| absolute("directory of certificates", path)).transpose()?;
        let token = token(token_file.as_deref()).map_err(Failure::usage)?;
        let output = Output { is_json: global.json };
        Ok(Settings { addresses, data_dir, token_file, token, tls_dir, output, file, from_file })
    }

    /// The network that every connection of this process goes through.
    ///
    /// # Errors
    /// The certificates cannot be read.
    pub fn net(&self) -> Result<SharedNet, Failure> {
        let tls = self.tls_dir.as_deref().map(Tls::load).transpose();
        let tls = tls.map_err(|why| Failure::usage(format!("cannot use TLS: {why}")))?;
        Ok(Arc::new(Guarded::new(TcpNet, self.token.clone(), tls)))
    }

    /// What a daemon is to be, with what the file says where options and environment say nothing.
    pub fn member(&self, given: &MemberArgs) -> MemberArgs {
        let (file, given) = (&self.file, given.clone());
        MemberArgs {
            head: given.head || file.head,
            join: file.join.or(&given.join),
            listen: given.listen.or_else(|| file.listen.clone()),
            advertise: given.advertise.or_else(|| file.advertise.clone()),
            shards: given.shards.or(file.shards),
            cpus: given.cpus.or(file.cpus),
            name: given.name.or_else(|| file.name.clone()),
            gpus: given.gpus.or(file.gpus),
            memory_mb: given.memory_mb.or(file.memory_mb),
            memory_full: given.memory_full.or(file.memory_full),
            resource: file.resource.or(&given.resource),
            label: file.label.or(&given.label),
            store_mb: given.store_mb.or(file.store_mb),
            linger_ms: given.linger_ms.or(file.linger_ms),
            insecure: given.insecure || file.insecure,
            no_repair: given.no_repair || file.no_repair,
            log_format: given.log_format.or_else(|| file.log_format.clone()),
        }
    }

    /// Refuses to open `address` to other machines without a token.
    ///
    /// # Errors
    /// It must not; the text says what to do.
    pub fn check_exposure(&self, address: &str, is_insecure: bool) -> Result<(), Failure> {
        if self.token.is_some() || is_insecure || is_loopback(address) {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "{address} can be reached from other machines, and whoever reaches it could run code here. Make a \
             cluster token with `mobula token new --out FILE` and give every machine --token-file FILE; or say \
             --insecure if nothing but trusted machines can reach it"
        )))
    }
}

/// Whether only this machine can reach `address`.
pub fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The token of the file, else of the environment.
fn token(file: Option<&Path>) -> Result<Option<Token>, String> {
    if let Some(path) = file {
        let text = std::fs::read_to_string(path)
            .map_err(|e| format!("cannot read the cluster token {}: {e}", path.display()))?;
        return Token::new(&text).map(Some).map_err(|why| format!("{}: {why}", path.display()));
    }
    let given = std::env::var(TOKEN_VARIABLE).ok().filter(|text| !text.is_empty());
    given.map(|text| Token::new(&text).map_err(|why| format!("{TOKEN_VARIABLE}: {why}"))).transpose()
}

fn load(path: &Path) -> Result<(ConfigFile, Vec<String>), Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::usage(format!("cannot read configuration {}: {e}", path.display())))?;
    parse(&text).map_err(|e| Failure::usage(format!("configuration {}: {e}", path.display())))
}

/// The settings, and which keys were there.
fn parse(text: &str) -> Result<(ConfigFile, Vec<String>), String> {
    let table: toml::Table = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
    let keys: Vec<String> = table.keys().cloned().collect();
    if let Some(unknown) = keys.iter().find(|key| !KEYS.contains(&key.as_str())) {
        let likeness = |known: &str| strsim::jaro_winkler(unknown, known);
        let closest = KEYS.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        return Err(match closest.filter(|known| likeness(known) >= SIMILAR) {
            Some(known) => format!("unknown key \"{unknown}\"; did you mean \"{known}\"?"),
            None => format!("unknown key \"{unknown}\"; known keys are {}", KEYS.join(", ")),
        });
    }
    let file = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
    Ok((file, keys))
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
    fn an_option_wins_over_the_file_and_the_file_over_the_default() {
        let (file, keys) = parse("join = \"a:1\"\nshards = 8\nstore_mb = 64\nhead = true\n").expect("good");
        assert_eq!(keys, ["head", "join", "shards", "store_mb"]);
        let settings = Settings {
            addresses: Vec::new(),
            data_dir: "/d".into(),
            token_file: None,
            token: None,
            tls_dir: None,
            output: Output { is_json: false },
            file,
            from_file: None,
        };
        let given = MemberArgs { shards: Some(2), join: vec!["b:2".into()], ..MemberArgs::default() };
        let member = settings.member(&given);
        assert_eq!((member.shards, member.store_mb, member.cpus), (Some(2), Some(64), None));
        assert!(member.head && member.join == ["b:2"]);
        for local in ["127.0.0.1:0", "localhost:1", "[::1]:1"] {
            settings.check_exposure(local, false).expect(local);
        }
        for open in ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "head-1:1"] {
            let refusal = settings.check_exposure(open, false).expect_err(open);
            assert!(refusal.message.contains("mobula token new"), "{}", refusal.message);
            settings.check_exposure(open, true).expect(open);
        }
        let token = Some(Token::new("0123456789abcdef").expect("good"));
        Settings { token, ..settings }.check_exposure("0.0.0.0:1", false).expect("guarded");
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_refused() {
        let unknown = parse("adress = \"a:1\"").expect_err("a typing error");
        assert!(unknown.contains("did you mean \"address\""), "{unknown}");
        let unknown = parse("zzz = 1").expect_err("nonsense");
        assert!(unknown.contains("known keys are address"), "{unknown}");
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
