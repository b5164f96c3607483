//! `mobula events`: what happened to the cluster, from its replicated log.

use crate::args::EventsArgs;
use crate::commands::ask::{DEADLINE, failed, with_client};
use crate::config::Settings;
use crate::exit::{self, Failure, Outcome};
use crate::output::{Output, complain};
use crate::say;
use mobula_gcs::{Client, Error, clock};
use mobula_look::happened::{KINDS, json, line, name_of};
use mobula_proto::{Event, EventsReply};
use std::time::Duration;

/// One question waits this long for something to happen.
const WAIT: Duration = Duration::from_secs(1);
/// Pause before a cluster that does not answer is asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// Prints what there is, and with `--follow` what comes.
pub fn run(settings: &Settings, args: &EventsArgs) -> Outcome {
    let wanted = Wanted { kinds: kinds(&args.kind)?, since: since(args.since.as_deref())? };
    let output = settings.output;
    with_client(settings, async |client| {
        if args.follow {
            follow(output, &client, &wanted).await
        } else {
            list(output, &client, &wanted).await
        }
    })
}

/// From where on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Since {
    /// After the event of this number.
    Number(u64),
    /// From this time on, of the clocks of the heads that told.
    Time(u64),
}

struct Wanted {
    /// Names of kinds, or what they begin with; none for all.
    kinds: Vec<String>,
    since: Since,
}

impl Wanted {
    fn above(&self) -> u64 {
        match self.since {
            Since::Number(number) => number,
            Since::Time(_) => 0,
        }
    }

    fn takes(&self, event: &Event) -> bool {
        let name = name_of(event.kind());
        let is_late = |at: u64| event.unix_ms >= at;
        let in_time =
            matches!(self.since, Since::Number(_)) || matches!(self.since, Since::Time(at) if is_late(at));
        in_time && (self.kinds.is_empty() || self.kinds.iter().any(|kind| is_of(name, kind)))
    }
}

/// `head` stands for everything that happens to heads.
fn is_of(name: &str, kind: &str) -> bool {
    name == kind || name.split('-').next() == Some(kind)
}

fn kinds(asked: &[String]) -> Result<Vec<String>, Failure> {
    for kind in asked {
        if !KINDS.iter().any(|(_, name)| is_of(name, kind)) {
            let names: Vec<&str> = KINDS.iter().map(|(_, name)| *name).collect();
            return Err(Failure::usage(format!(
                "no kind of event is called {kind:?}: there are {}, and node, job, head and slot for all of theirs",
                names.join(", ")
            )));
        }
    }
    Ok(asked.to_vec())
}

fn since(asked: Option<&str>) -> Result<Since, Failure> {
    let Some(asked) = asked else { return Ok(Since::Number(0)) };
    let (number, unit) = asked.split_at(asked.find(|c: char| !c.is_ascii_digit()).unwrap_or(asked.len()));
    let seconds = match unit {
        "" => 0,
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => u64::MAX,
    };
    let number = number.parse::<u64>().ok().filter(|_| seconds < u64::MAX);
    match (number, number.and_then(|number| number.checked_mul(seconds * 1000))) {
        (Some(number), _) if seconds == 0 => Ok(Since::Number(number)),
        (_, Some(ms)) => Ok(Since::Time(clock::unix_ms().saturating_sub(ms))),
        _ => Err(Failure::usage(format!(
            "--since {asked:?}: give an age such as 90s, 10m, 2h or 1d, or the number of an event"
        ))),
    }
}

async fn list(output: Output, client: &Client, wanted: &Wanted) -> Outcome {
    let (mut above, mut shown) = (wanted.above(), Vec::new());
    loop {
        let reply = client.events(above, Duration::ZERO, DEADLINE).await.map_err(failed)?;
        missed(above, &reply);
        let Some(last) = reply.events.last() else { break };
        above = last.seq;
        shown.extend(reply.events.into_iter().filter(|event| wanted.takes(event)));
        if above >= reply.last {
            break;
        }
    }
    shown.iter().for_each(|event| say!(output, "{}", line(event)));
    output.data(&shown.iter().map(json).collect::<Vec<_>>());
    Ok(exit::OK)
}

/// Until the command is interrupted, whatever happens to the cluster.
async fn follow(output: Output, client: &Client, wanted: &Wanted) -> Outcome {
    let (mut above, mut silent) = (wanted.above(), false);
    loop {
        let reply = match client.events(above, WAIT, DEADLINE).await {
            Ok(reply) => reply,
            Err(error @ Error::Unreachable { .. }) => {
                if !std::mem::replace(&mut silent, true) {
                    complain(format_args!("{error}; still asking"));
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        silent = false;
        if let Some(last) = reply.events.last() {
            missed(above, &reply);
            above = last.seq;
        }
        for event in reply.events.iter().filter(|event| wanted.takes(event)) {
            say!(output, "{}", line(event));
            output.record(&json(event));
        }
    }
}

/// Says so when older events are gone.
fn missed(above: u64, reply: &EventsReply) {
    if reply.first > above + 1 {
        complain(format_args!("events {} to {} are no longer kept", above + 1, reply.first - 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_ages_are_understood_or_refused() {
        assert!(is_of("head-drained", "head") && is_of("election", "election"));
        assert!(!is_of("head-drained", "head-drain") && !is_of("node-left", "head"));
        kinds(&["node".into(), "transfer".into()]).expect("there");
        assert_eq!(kinds(&["nodes".into()]).expect_err("not there").code, exit::USAGE);
        assert_eq!(since(Some("17")).expect("a number"), Since::Number(17));
        assert!(matches!(since(Some("2h")).expect("an age"), Since::Time(at) if at > 0));
        for wrong in ["", "h", "2w", "-1h", "99999999999999999999d", "18446744073709551615d"] {
            assert!(since(Some(wrong)).is_err(), "{wrong}");
        }
    }
}
