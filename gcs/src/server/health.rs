//! Whether this head is alive, and whether it is of use: `/healthz`, `/readyz`, gRPC health.

use super::Site;

/// Why this head cannot serve every shard now, or nothing. A shard is served when this head knows
/// who leads it: it leads itself, or sends callers on.
///
/// # Errors
/// What is missing, in words.
pub fn readiness(site: &Site) -> Result<(), String> {
    let Some(running) = site.running.get() else {
        return Err("this head waits for the other heads of its list".into());
    };
    if let Some(why) = running.log.stopped() {
        return Err(format!("the log has stopped: {why}"));
    }
    for group in running.groups.iter() {
        if let Some(why) = group.progress().stopped {
            return Err(format!("the replica of shard {} has stopped: {why}", group.shard));
        }
        if group.leadership().leader.is_none() {
            return Err(format!("shard {} has no leader that this head knows of", group.shard));
        }
    }
    Ok(())
}
