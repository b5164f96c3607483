//! The demo's input: the Rust sources that cargo fetched to build this project, or any directory.

use super::block::FileRef;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// The packages this binary was built from, so that a copy of it anywhere knows what to look for.
const LOCK_FILE: &str = include_str!("../../../Cargo.lock");

/// Files larger than this are tables, not sources; they are left out.
pub const FILE_BYTES_MAX: u64 = 1_000_000;
/// With less than this in cargo's cache the seeded corpus stands in.
pub const CACHE_BYTES_MIN: u64 = 20_000_000;

/// A listed input: the same list in every process that lists the same files.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Input {
    /// What this is, in a few words.
    pub name: String,
    /// The files, by id.
    pub files: Vec<FileRef>,
    /// By file id: its path below the input, with `/` between the parts.
    pub labels: Vec<String>,
    /// How many packages there are; for a directory, every file is one of its own.
    pub packages: u32,
    /// What was left out, and why.
    pub skipped: Skipped,
}

/// Counts of what was found but not taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// No permission, or gone while listing.
    pub unreadable: u32,
    /// Not UTF-8 text.
    pub not_text: u32,
    /// More than [`FILE_BYTES_MAX`].
    pub too_large: u32,
    /// Symbolic links, which may loop, and anything else that is no regular file.
    pub not_regular: u32,
}

impl Input {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.len).sum()
    }

    /// By file id: which block holds it.
    pub fn block_of(&self, blocks: &[Vec<FileRef>]) -> Vec<u32> {
        let mut out = vec![0; self.files.len()];
        for (block, files) in (0..).zip(blocks) {
            for file in files {
                out[file.id as usize] = block;
            }
        }
        out
    }

    /// Adds the files found below one root. `package` gives a file's package, by its id.
    fn add(&mut self, found: BTreeMap<String, (PathBuf, u64)>, package: impl Fn(u32) -> u32) {
        for (label, (path, len)) in found {
            let id = self.files.len() as u32;
            // Only UTF-8 paths were taken: a task's arguments are text.
            let path = path.to_string_lossy().into_owned();
            self.files.push(FileRef { id, package: package(id), len, path });
            self.labels.push(label);
        }
    }
}

/// All text files below `dir`.
///
/// # Errors
/// `dir` is missing, no directory, or has no text file that can be used.
pub fn directory(dir: &Path) -> Result<Input, String> {
    let shown = dir.display();
    let meta = fs::metadata(dir)
        .map_err(|e| format!("cannot use {shown} as input: {e}; give --input a directory with text files"))?;
    if !meta.is_dir() {
        return Err(format!("cannot use {shown} as input: it is no directory; give --input a directory"));
    }
    // Tasks run in other processes, with working directories of their own.
    let dir = fs::canonicalize(dir).map_err(|e| format!("cannot use {shown} as input: {e}"))?;
    let mut input = Input { name: format!("{shown}"), ..Input::default() };
    let mut found = BTreeMap::new();
    walk(&dir, "", None, &mut found, &mut input.skipped);
    input.add(found, |id| id);
    input.packages = input.files.len() as u32;
    if input.files.is_empty() {
        return Err(format!(
            "cannot use {shown} as input: no text file in it ({}); give --input a directory with text files",
            input.skipped
        ));
    }
    Ok(input)
}

/// The sources of this project's dependencies in cargo's cache, as far as they are there.
pub fn cargo_cache() -> Input {
    let mut input = Input::default();
    let roots = registry_roots();
    let mut packages = 0;
    for (name, version) in locked_packages(LOCK_FILE) {
        let folder = format!("{name}-{version}");
        let Some(root) = roots.iter().map(|r| r.join(&folder)).find(|r| r.is_dir()) else { continue };
        let mut found = BTreeMap::new();
        walk(&root, &folder, Some(OsStr::new("rs")), &mut found, &mut input.skipped);
        if !found.is_empty() {
            input.add(found, |_| packages);
            packages += 1;
        }
    }
    input.packages = packages;
    input.name = format!("the Rust sources of {packages} packages that cargo fetched to build this project");
    input
}

/// Cargo's folders of unpacked packages, one for each registry.
fn registry_roots() -> Vec<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|h| h.join(".cargo")));
    let Some(entries) = home.and_then(|h| fs::read_dir(h.join("registry/src")).ok()) else {
        return Vec::new();
    };
    let mut roots: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    roots.sort();
    roots
}

/// Name and version of the packages of a lock file that come from a registry, sorted.
fn locked_packages(lock_file: &str) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for block in lock_file.split("[[package]]").skip(1) {
        let field = |key: &str| {
            block
                .lines()
                .find_map(|line| line.strip_prefix(key)?.trim().strip_prefix("= \"")?.strip_suffix('"'))
        };
        if let (Some(name), Some(version), Some(source)) =
            (field("name "), field("version "), field("source "))
            && source.starts_with("registry+")
        {
            out.push((name.to_owned(), version.to_owned()));
        }
    }
    out.sort();
    out
}

/// Collects the text files below `dir` under labels that start with `prefix`. Links are never
/// followed, so a loop cannot trap the walk.
fn walk(
    dir: &Path,
    prefix: &str,
    extension: Option<&OsStr>,
    found: &mut BTreeMap<String, (PathBuf, u64)>,
    skipped: &mut Skipped,
) {
    let mut open = vec![(dir.to_owned(), prefix.to_owned())];
    while let Some((dir, prefix)) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            skipped.unreadable += 1;
            continue;
        };
        for entry in entries {
            let Some((entry, kind)) = entry.ok().and_then(|e| e.file_type().ok().map(|kind| (e, kind)))
            else {
                skipped.unreadable += 1;
                continue;
            };
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                skipped.not_text += 1;
                continue;
            };
            let label = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            if kind.is_dir() {
                open.push((path, label));
            } else if extension.is_none() || path.extension() == extension {
                if !kind.is_file() {
                    skipped.not_regular += 1;
                } else if let Some(len) = usable(&path, skipped) {
                    found.insert(label, (path, len));
                }
            }
        }
    }
}

/// The length of a file that is text and not too large; counts why, if not.
fn usable(path: &Path, skipped: &mut Skipped) -> Option<u64> {
    // The size first, so that a huge file is never read.
    match fs::metadata(path) {
        Err(_) => skipped.unreadable += 1,
        Ok(meta) if meta.len() > FILE_BYTES_MAX => skipped.too_large += 1,
        Ok(_) => match fs::read(path) {
            Err(_) => skipped.unreadable += 1,
            Ok(bytes) if std::str::from_utf8(&bytes).is_err() || bytes.contains(&0) => skipped.not_text += 1,
            Ok(bytes) => return Some(bytes.len() as u64),
        },
    }
    None
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<String> = [
            (self.unreadable, "unreadable"),
            (self.not_text, "not text"),
            (self.too_large, "over 1 MB"),
            (self.not_regular, "links or special files"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
        if parts.is_empty() {
            f.write_str("nothing skipped")
        } else {
            write!(f, "skipped: {}", parts.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("mobula-input-test-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a scratch directory");
        dir
    }

    #[test]
    fn a_missing_or_empty_directory_says_what_to_do() {
        let dir = scratch("empty");
        let missing = directory(&dir.join("nowhere")).expect_err("missing");
        assert!(missing.contains("nowhere") && missing.contains("--input"), "{missing}");
        let empty = directory(&dir).expect_err("empty");
        assert!(empty.contains("no text file"), "{empty}");
        fs::remove_dir_all(&dir).expect("removable");
    }

    #[test]
    fn bad_files_in_a_good_directory_are_counted_and_left_out() {
        let dir = scratch("bad");
        fs::create_dir_all(dir.join("deep/er")).expect("folders");
        fs::write(dir.join("deep/er/b.txt"), "b").expect("a file");
        fs::write(dir.join("a.txt"), "aa").expect("a file");
        fs::write(dir.join("binary"), [0xff, 0xfe]).expect("a file");
        fs::write(dir.join("huge"), vec![b'x'; FILE_BYTES_MAX as usize + 1]).expect("a file");
        std::os::unix::fs::symlink(&dir, dir.join("deep/loop")).expect("a link");
        let input = directory(&dir).expect("two good files");
        fs::remove_dir_all(&dir).expect("removable");
        assert_eq!(input.labels, ["a.txt", "deep/er/b.txt"]);
        assert_eq!(input.files[0].len, 2);
        assert_eq!(
            input.skipped,
            Skipped { unreadable: 0, not_text: 1, too_large: 1, not_regular: 1 },
            "{}",
            input.skipped
        );
    }

    #[test]
    fn only_registry_packages_of_a_lock_file_count() {
        let lock = "version = 4\n\n[[package]]\nname = \"b\"\nversion = \"1.0.0\"\nsource = \"registry+https://x\"\n\
                    dependencies = [\n \"name = \",\n]\n\n[[package]]\nname = \"mine\"\nversion = \"0.1.0\"\n\n\
                    [[package]]\nname = \"a\"\nversion = \"2.0.0+build\"\nsource = \"registry+https://x\"\n";
        let names: Vec<String> = locked_packages(lock).into_iter().map(|(n, v)| format!("{n}-{v}")).collect();
        assert_eq!(names, ["a-2.0.0+build", "b-1.0.0"]);
        assert!(locked_packages(LOCK_FILE).iter().any(|(name, _)| name == "tokio"));
    }
}
