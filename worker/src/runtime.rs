//! What the workers of a job find around them: environment variables, and files in their working directory.

use crate::error::Error;
use mobula_proto::{self as proto, SHIPPED_FILES_MAX};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What the workers of a job find around them, on whatever node they run. The driver's binary travels by itself.
///
/// Files travel by the hash of their content: each node is sent a file once, also for later jobs, and verifies it
/// before it is used. Each node lays them out in a directory of the job, where its workers begin and may write; it is
/// removed when the job ends.
#[derive(Debug, Clone, Default)]
pub struct Runtime {
    /// Environment variables beside those of the node daemon. Names that begin with `MOBULA_` are refused.
    pub env: Vec<(String, String)>,
    /// Files, and where they are to lie below the working directory.
    pub files: Vec<(PathBuf, String)>,
    /// A directory whose files are shipped with their names, all that lie below it.
    pub working_dir: Option<PathBuf>,
}

impl Runtime {
    /// All files by themselves, as they lie on this machine.
    ///
    /// # Errors
    /// One is not there, or is no file: a link, say.
    pub(crate) fn gather(&self) -> Result<Self, Error> {
        let mut files = Vec::new();
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |cause: io::Error| Error::NotShipped { path, cause: cause.to_string() }
        };
        if let Some(top) = &self.working_dir {
            walk(top, top, &mut files).map_err(failed(top))?;
        }
        for (source, path) in &self.files {
            files.push((source.canonicalize().map_err(failed(source))?, path.clone()));
        }
        Ok(Runtime { env: self.env.clone(), files, working_dir: None })
    }

    pub(crate) fn wire(&self) -> proto::Runtime {
        let var =
            |(name, value): &(String, String)| proto::EnvVar { name: name.clone(), value: value.clone() };
        let file =
            |(_, path): &(PathBuf, String)| proto::ShippedFile { path: path.clone(), ..Default::default() };
        proto::Runtime {
            env: self.env.iter().map(var).collect(),
            files: self.files.iter().map(file).collect(),
        }
    }

    /// Where the files of [`Runtime::wire`] lie, in their order.
    pub(crate) fn sources(&self) -> Vec<String> {
        self.files.iter().map(|(source, _)| source.display().to_string()).collect()
    }
}

/// Adds the files below `dir`, named from `top` on, in the order of their names.
fn walk(top: &Path, dir: &Path, files: &mut Vec<(PathBuf, String)>) -> io::Result<()> {
    let mut entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, kind) = (entry.path(), entry.file_type()?);
        let refuse = |why: &str| Err(io::Error::other(format!("{} {why}", path.display())));
        if kind.is_dir() {
            walk(top, &path, files)?;
        } else if !kind.is_file() {
            return refuse("is neither a file nor a directory: ship what it stands for");
        } else if files.len() == SHIPPED_FILES_MAX {
            return refuse(&format!("is one too many: {SHIPPED_FILES_MAX} files can be shipped"));
        } else {
            let name = path.strip_prefix(top).ok().and_then(Path::to_str);
            let Some(name) = name.map(str::to_owned) else { return refuse("has a name that is not UTF-8") };
            files.push((path.canonicalize()?, name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_shipped_with_all_that_lies_below_it_but_no_links() {
        let top = std::env::temp_dir().join(format!("mobula-runtime-{}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        fs::create_dir_all(top.join("models/small")).expect("a directory");
        fs::write(top.join("settings.toml"), "x = 1").expect("written");
        fs::write(top.join("models/small/weights"), [1, 2, 3]).expect("written");
        let runtime = Runtime { working_dir: Some(top.clone()), ..Runtime::default() };
        let names = |runtime: &Runtime| -> Vec<String> {
            runtime.wire().files.into_iter().map(|file| file.path).collect()
        };
        let gathered = runtime.gather().expect("all there");
        assert_eq!(names(&gathered), ["models/small/weights", "settings.toml"]);
        assert!(gathered.sources()[1].ends_with("settings.toml"));
        std::os::unix::fs::symlink("settings.toml", top.join("link")).expect("a link");
        let error = runtime.gather().expect_err("a link").to_string();
        assert!(error.contains("link"), "{error}");
        let missing = Runtime { files: vec![(top.join("none"), "none".into())], ..Runtime::default() };
        assert!(missing.gather().expect_err("not there").to_string().contains("none"));
        fs::remove_dir_all(top).expect("removed");
    }
}
