//! A cluster of `mobula up`, and what is asked of it.

use serde_json::Value;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// An HTTP answer must be there within this.
const ANSWERED: Duration = Duration::from_secs(20);

/// What fails is asked so often again.
const RETRIES: usize = 3;

/// It ends, and takes everything along, when it is dropped.
pub struct Cluster {
    up: Child,
    pub heads: Vec<String>,
    pub sockets: Vec<PathBuf>,
    /// Of all daemons.
    pub dir: PathBuf,
}

fn mobula() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mobula"));
    for variable in ["MOBULA_ADDRESS", "MOBULA_CONFIG", "MOBULA_DATA_DIR", "MOBULA_SOCKET", "MOBULA_TOKEN"] {
        command.env_remove(variable);
    }
    command
}

impl Cluster {
    /// Three heads, two nodes of two workers.
    pub fn start() -> Cluster {
        let mut up = mobula()
            .args(["up", "--heads", "3", "--nodes", "2", "--workers", "2", "--store-mb", "64", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        let said = BufReader::new(up.stdout.take().expect("it is piped"));
        let reach = serde_json::Deserializer::from_reader(said).into_iter::<Value>().next();
        let reach = reach.expect("it says where it is").expect("in JSON");
        let list = |key: &str| {
            let texts = reach[key].as_array().into_iter().flatten().filter_map(Value::as_str);
            texts.map(str::to_owned).collect::<Vec<String>>()
        };
        let dir = reach["data"].as_str().expect("a directory").into();
        Cluster {
            up,
            heads: list("heads"),
            sockets: list("sockets").into_iter().map(PathBuf::from).collect(),
            dir,
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = mobula();
        command.args(args).args(["--address", &self.heads.join(",")]);
        command
    }

    /// Runs a command; its exit code, and all that it said.
    pub fn run(&self, args: &[&str]) -> (i32, String) {
        let output = self.command(args).output().expect("the binary runs");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
    }

    /// What a command prints as JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        // While a member dies a question may go unanswered once.
        let mut output = self.command(args).arg("--json").output().expect("the binary runs");
        for _ in 0..RETRIES {
            if output.status.success() {
                break;
            }
            output = self.command(args).arg("--json").output().expect("the binary runs");
        }
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {}\n{said}", output.status);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: no JSON ({e})\n{said}"))
    }

    /// Sends SIGKILL to a daemon.
    pub fn kill(&self, name: &str) {
        let path = self.dir.join(name).join("daemon.pid");
        let process: Value = serde_json::from_slice(&std::fs::read(&path).expect("it runs")).expect("JSON");
        let pid = process["pid"].as_u64().expect("a process");
        let killed = Command::new("kill").args(["-9", &pid.to_string()]).status();
        assert!(killed.expect("there is kill").success(), "{name}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-INT", &self.up.id().to_string()]).status();
        let _ = self.up.wait();
    }
}

/// An answer over HTTP.
pub struct Answer {
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|e| panic!("no JSON ({e}): {}\n{}", self.head, self.body))
    }
}

/// Asks a head over HTTP.
pub fn get(address: &str, path: &str, headers: &[&str]) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWERED))?;
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n{headers}Connection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    Ok(Answer { head: head.to_owned(), body: body.to_owned() })
}
