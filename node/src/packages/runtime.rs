//! What the workers of a job find around them: environment variables, and a directory with files.

use super::travel::Holder;
use super::{Packages, draft_in};
use mobula_base::JobId;
use mobula_proto::{JobStart, Runtime, SHIPPED_FILES_MAX, ShippedFile};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Bytes that they have together at most.
pub const FILES_BYTES_MAX: u64 = 1 << 30;
/// Environment variables of one job at most.
pub const ENV_MAX: usize = 256;
/// Names of variables that are the daemon's to set.
const OURS: &str = "MOBULA_";

/// What a worker is started with.
#[derive(Clone, Debug, Default)]
pub struct Prepared {
    /// The binary.
    pub executable: PathBuf,
    /// Where it begins; `None` where the daemon is.
    pub directory: Option<PathBuf>,
}

/// Whether a job's runtime can be had, before anything is done for it.
///
/// # Errors
/// What is wrong, and with which name.
pub fn check(runtime: &Runtime, sources: usize) -> Result<(), String> {
    if runtime.env.len() > ENV_MAX || runtime.files.len() > SHIPPED_FILES_MAX {
        return Err(format!(
            "a job has at most {ENV_MAX} environment variables and {SHIPPED_FILES_MAX} files"
        ));
    }
    for var in &runtime.env {
        let bad = var.name.is_empty() || var.name.contains(['=', '\0']) || var.value.contains('\0');
        if bad || var.name.starts_with(OURS) {
            return Err(format!(
                "the environment variable {:?} cannot be set: a name has no '=', and {OURS}... is the daemon's",
                var.name
            ));
        }
    }
    let mut seen = BTreeSet::new();
    for file in &runtime.files {
        if !is_inside(&file.path) || !seen.insert(&file.path) {
            return Err(format!(
                "the file {:?} cannot be shipped: its name is relative, has no '..', and stands there once",
                file.path
            ));
        }
    }
    if sources != runtime.files.len() {
        return Err("the driver does not say of each file where it lies: is it of another release?".into());
    }
    Ok(())
}

fn is_inside(path: &str) -> bool {
    let mut parts = Path::new(path).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_))) && !path.contains('\0')
}

impl Packages {
    /// Takes copies of the files that a driver ships, and notes what they contain.
    ///
    /// # Errors
    /// One cannot be had, or they are too large together.
    pub fn take_all(&self, files: &mut [ShippedFile], sources: &[String]) -> Result<(), String> {
        let mut bytes = 0;
        for (file, source) in files.iter_mut().zip(sources) {
            let taken = self.take(Path::new(source));
            let (content, executable) = taken.map_err(|e| format!("{source} cannot be shipped: {e}"))?;
            bytes += content.size;
            if bytes > FILES_BYTES_MAX {
                return Err(format!("the files of a job have at most {FILES_BYTES_MAX} bytes together"));
            }
            (file.content, file.executable) = (Some(content), executable);
        }
        Ok(())
    }

    /// What a worker of this job is started with, once all of it is here.
    ///
    /// # Errors
    /// Something cannot be had: says what.
    pub async fn prepare(self: &Arc<Self>, start: &JobStart, holder: &Holder) -> Result<Prepared, String> {
        let executable = match &start.program {
            Some(program) => self.bring(program, &start.executable, holder).await?,
            None => PathBuf::from(&start.executable),
        };
        let files = start.runtime.as_ref().map_or(&[][..], |runtime| &runtime.files);
        let directory = if files.is_empty() { None } else { Some(self.furnish(start, files, holder).await?) };
        Ok(Prepared { executable, directory })
    }

    /// Lays the files of a job out in a directory that its workers on this node share.
    async fn furnish(
        self: &Arc<Self>,
        start: &JobStart,
        files: &[ShippedFile],
        holder: &Holder,
    ) -> Result<PathBuf, String> {
        let directory = directory_of(&self.jobs, JobId(start.job));
        if directory.exists() {
            return Ok(directory);
        }
        let mut laid = Vec::new();
        for file in files {
            let content = file.content.as_ref().ok_or_else(|| format!("{} has no content", file.path))?;
            laid.push((self.bring(content, "", holder).await?, file.path.clone(), file.executable));
        }
        // Another worker of the job may be at it, too: whoever is first wins.
        let (draft, to) = (draft_in(&self.jobs), directory.clone());
        let lay = move || lay_out(&laid, &draft, &to);
        let done = tokio::task::spawn_blocking(lay).await.map_err(|e| e.to_string())?;
        done.map_err(|error| format!("{}: {error}", directory.display()))?;
        Ok(directory)
    }
}

fn lay_out(files: &[(PathBuf, String, bool)], draft: &Path, to: &Path) -> io::Result<()> {
    for (from, path, executable) in files {
        let path = draft.join(path);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::copy(from, &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(if *executable { 0o700 } else { 0o600 }))?;
    }
    match fs::rename(draft, to) {
        Err(_) if to.exists() => fs::remove_dir_all(draft),
        renamed => renamed,
    }
}

fn directory_of(jobs: &Path, job: JobId) -> PathBuf {
    jobs.join(format!("{:016x}", job.0))
}

/// Removes what the workers of a job had around them.
pub(super) fn remove(jobs: &Path, job: JobId) {
    let _ = fs::remove_dir_all(directory_of(jobs, job));
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_proto::EnvVar;

    #[test]
    fn names_that_would_do_harm_are_refused() {
        let file = |path: &str| ShippedFile { path: path.into(), ..ShippedFile::default() };
        let var = |name: &str| EnvVar { name: name.into(), value: "x".into() };
        let runtime = |env: &[&str], files: &[&str]| Runtime {
            env: env.iter().map(|name| var(name)).collect(),
            files: files.iter().map(|path| file(path)).collect(),
        };
        assert_eq!(check(&runtime(&["A", "b_2"], &["x", "d/y"]), 2), Ok(()));
        for env in ["", "A=B", "MOBULA_WORKER_TOKEN", "a\0"] {
            assert!(check(&runtime(&[env], &[]), 0).is_err(), "{env:?}");
        }
        for path in ["", "/etc/passwd", "../x", "a/../../x", "a\0", "./x"] {
            assert!(check(&runtime(&[], &[path]), 1).is_err(), "{path:?}");
        }
        assert!(check(&runtime(&[], &["x", "x"]), 2).is_err());
        assert!(check(&runtime(&[], &["x"]), 0).is_err());
    }
}
