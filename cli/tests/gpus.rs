//! GPUs of a machine with a driver: what stands for NVIDIA's library says that there are three.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const DRIVER: &str = "
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return 0; }
";

/// A daemon with the driver, in a directory of its own; both end with it.
struct Daemon(PathBuf);

impl Daemon {
    fn mobula(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mobula"));
        command.args(args).arg("--data-dir").arg(self.0.join("data"));
        for variable in ["MOBULA_ADDRESS", "MOBULA_CONFIG", "MOBULA_GPUS", "CUDA_VISIBLE_DEVICES"] {
            command.env_remove(variable);
        }
        command.env("LD_LIBRARY_PATH", &self.0).output().expect("the binary runs")
    }

    /// How many GPUs a node offers that is started with these options.
    fn offers(&self, options: &[&str]) -> f64 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        drop(listener);
        let start = ["start", "--head", "--listen", &address, "--cpus", "1"];
        let started = self.mobula(&[&start[..], options].concat());
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        let until = Instant::now() + Duration::from_secs(60);
        let found = loop {
            let status = self.mobula(&["status", "--json"]);
            let json: Value = serde_json::from_slice(&status.stdout).expect("JSON");
            if let Some(node) = json["nodes"].as_array().and_then(|nodes| nodes.first()) {
                break node["resources"]["gpu"].as_f64().unwrap_or(0.0);
            }
            assert!(Instant::now() < until, "no node joins: {json}");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(self.mobula(&["stop"]).status.success());
        fs::remove_dir_all(self.0.join("data")).expect("it is ours");
        found
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.mobula(&["stop"]);
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn build_driver(dir: &Path) {
    fs::create_dir_all(dir).expect("a directory");
    fs::write(dir.join("driver.c"), DRIVER).expect("writable");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o", "libnvidia-ml.so.1", "driver.c"]).current_dir(dir);
    assert!(compiler.status().expect("the compiler that Rust links with").success());
}

#[test]
fn gpus_are_found_where_a_driver_is() {
    let daemon = Daemon(std::env::temp_dir().join(format!("mobula-gpus-{}", std::process::id())));
    build_driver(&daemon.0);
    assert_eq!(daemon.offers(&[]), 3.0, "the driver says so");
    assert_eq!(daemon.offers(&["--gpus", "1"]), 1.0, "what is declared counts");
    assert_eq!(daemon.offers(&["--gpus", "0"]), 0.0);
}
