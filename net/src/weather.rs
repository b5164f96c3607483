//! What goes wrong on a network that can be told to go wrong, as a value and as the line of text that orders it.

use std::fmt::{Display, Formatter, Result as Fmt};
use std::str::FromStr;
use std::time::Duration;

/// Nothing is late for longer than this.
const DELAY_MAX: Duration = Duration::from_secs(60);
/// A connection that is slower than this does not move.
const RATE_MIN: u64 = 1_000;

/// What does not get through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    /// Everything gets through.
    #[default]
    None,
    /// Nothing arrives and nothing leaves.
    Both,
    /// Nothing arrives.
    Inbound,
    /// Nothing leaves.
    Outbound,
}

impl FromStr for Cut {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Cut::None),
            "both" => Ok(Cut::Both),
            "inbound" => Ok(Cut::Inbound),
            "outbound" => Ok(Cut::Outbound),
            other => Err(format!("\"{other}\" is no cut; there are none, both, inbound and outbound")),
        }
    }
}

impl Display for Cut {
    fn fmt(&self, f: &mut Formatter<'_>) -> Fmt {
        f.write_str(match self {
            Cut::None => "none",
            Cut::Both => "both",
            Cut::Inbound => "inbound",
            Cut::Outbound => "outbound",
        })
    }
}

/// How a network behaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// What does not get through; no connection ends.
    pub cut: Cut,
    /// Bytes arrive, and leave, so much later.
    pub delay: Duration,
    /// Bytes per second of a connection, each way; 0: as many as there are.
    pub rate: u64,
    /// Of a thousand calls so many do not arrive, are not answered, or fail for their caller while they go on.
    pub calls: [u32; 3],
    /// All this concerns only connections that are dialed to these addresses, and calls to them; none: all there are.
    pub only: Vec<String>,
}

/// The names of [`Weather::calls`].
const CALLS: [&str; 3] = ["request", "answer", "in-flight"];

impl Weather {
    /// A cut, and nothing else.
    pub fn of(cut: Cut) -> Self {
        Weather { cut, ..Weather::default() }
    }

    /// Whether a connection or call to `address` is meant; one that was accepted has none that says who it is.
    pub fn concerns(&self, address: Option<&str>) -> bool {
        self.only.is_empty() || address.is_some_and(|address| self.only.iter().any(|only| only == address))
    }
}

impl Display for Weather {
    fn fmt(&self, f: &mut Formatter<'_>) -> Fmt {
        write!(f, "cut={} delay={}ms rate={}", self.cut, self.delay.as_millis(), self.rate)?;
        for (name, permille) in CALLS.iter().zip(self.calls) {
            write!(f, " {name}={permille}")?;
        }
        if !self.only.is_empty() {
            write!(f, " only={}", self.only.join(","))?;
        }
        Ok(())
    }
}

impl FromStr for Weather {
    type Err = String;

    /// Reads `cut=both delay=20ms rate=1000000 request=50 answer=0 in-flight=0 only=a:1,b:2`; what is not said is as
    /// it is without faults. A word without `=` is a cut.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut weather = Weather::default();
        for word in text.split_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or(("cut", word));
            let number = |value: &str| {
                value.parse::<u64>().map_err(|_| format!("{name}={value}: that is no whole number"))
            };
            match name {
                "cut" => weather.cut = value.parse()?,
                "delay" => {
                    let ms = value.strip_suffix("ms").ok_or_else(|| format!("{word}: write {name}=20ms"))?;
                    weather.delay = Duration::from_millis(number(ms)?);
                    if weather.delay > DELAY_MAX {
                        return Err(format!("{word}: at most {} s", DELAY_MAX.as_secs()));
                    }
                }
                "rate" => {
                    weather.rate = number(value)?;
                    if (1..RATE_MIN).contains(&weather.rate) {
                        return Err(format!(
                            "{word}: at least {RATE_MIN} bytes per second, or 0 for any number"
                        ));
                    }
                }
                "only" => weather.only = value.split(',').map(str::to_owned).collect(),
                name => {
                    let Some(at) = CALLS.iter().position(|call| *call == name) else {
                        return Err(format!(
                            "\"{name}\" is not known; there are cut, delay, rate, request, answer, in-flight and only"
                        ));
                    };
                    weather.calls[at] = number(value)?.min(1000) as u32;
                }
            }
        }
        Ok(weather)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weather_comes_back_from_its_text() {
        let weather = Weather {
            cut: Cut::Inbound,
            delay: Duration::from_millis(20),
            rate: 1_000_000,
            calls: [50, 0, 7],
            only: vec!["a:1".into(), "b:2".into()],
        };
        assert_eq!(weather.to_string().parse(), Ok(weather.clone()));
        assert_eq!("both".parse(), Ok(Weather::of(Cut::Both)));
        assert_eq!("".parse(), Ok(Weather::default()));
        assert!(weather.concerns(Some("b:2")) && !weather.concerns(Some("c:2")) && !weather.concerns(None));
        assert!(Weather::default().concerns(None));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_reason() {
        for (text, why) in [
            ("all", "inbound"),
            ("cut=all", "inbound"),
            ("delay=20", "delay=20ms"),
            ("delay=xms", "whole number"),
            ("delay=100000ms", "at most"),
            ("rate=1", "at least"),
            ("rain=1", "\"rain\""),
        ] {
            let said = text.parse::<Weather>().expect_err(text);
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn cuts_have_names() {
        for cut in [Cut::None, Cut::Both, Cut::Inbound, Cut::Outbound] {
            assert_eq!(cut.to_string().parse(), Ok(cut));
        }
    }
}
