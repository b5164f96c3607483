//! The page in a real browser, where one is installed.

use super::cluster::Cluster;
use std::path::PathBuf;
use std::process::Command;

/// Names under which Chromium is installed.
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// The page's own time until it is looked at, milliseconds.
const SETTLED_MS: u32 = 6_000;
/// A browser that takes longer is ended, seconds.
const LOADED_WITHIN_S: u32 = 120;
/// A picture of nothing is smaller, bytes.
const PICTURE_LEAST: u64 = 20_000;

fn browser() -> Option<PathBuf> {
    let dirs: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    BROWSERS.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name))).find(|path| path.exists())
}

/// Loads the page and looks at it: at what its scripts have made of it, and at a picture. Whether there is a browser.
pub fn a_person_sees_the_cluster(cluster: &Cluster) -> bool {
    let Some(browser) = browser() else {
        println!("skipped: no Chromium is installed, so nobody looked at the page");
        return false;
    };
    let picture = cluster.dir.join("page.png");
    let profile = cluster.dir.join("browser");
    let load = |what: &str, tab: &str| {
        let output = Command::new("timeout")
            .arg(LOADED_WITHIN_S.to_string())
            .arg(&browser)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args([
                "--disable-dev-shm-usage",
                "--enable-logging=stderr",
                "--hide-scrollbars",
                "--window-size=1280,1000",
            ])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(format!("--virtual-time-budget={SETTLED_MS}"))
            .arg(what)
            .arg(format!("http://{}/{tab}", cluster.heads[0]))
            .output()
            .expect("the browser runs");
        (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (dom, said) = load("--dump-dom", "");
    for text in ["healthy", "leader", "3/3 heads", "2/2 nodes"] {
        assert!(dom.contains(text), "the page does not say {text:?}\n{said}\n{dom}");
    }
    let (dom, said) = load("--dump-dom", "#tasks");
    assert!(dom.contains("waits_for_file"), "the page does not show the task that runs\n{said}\n{dom}");
    for complaint in ["Uncaught", "Refused to", "SyntaxError"] {
        assert!(!said.contains(complaint), "{said}");
    }
    let (_, said) = load(&format!("--screenshot={}", picture.display()), "");
    let size = std::fs::metadata(&picture).map_or(0, |file| file.len());
    assert!(size > PICTURE_LEAST, "a picture of {size} bytes\n{said}");
    if let Some(keep) = std::env::var_os("MOBULA_KEEP_PICTURE") {
        std::fs::copy(&picture, keep).expect("the picture is kept");
    }
    true
}
