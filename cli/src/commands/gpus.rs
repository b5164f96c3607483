//! The GPUs of this machine, where NVIDIA's driver is there to be asked.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

/// The variable that says which GPUs a process may use.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// How many GPUs a node here has to hand out, when nobody says so.
pub fn found() -> u32 {
    let count = Nvml::init().and_then(|driver| driver.device_count());
    found_by(count, std::env::var(VISIBLE).ok().as_deref())
}

fn found_by(count: Result<u32, NvmlError>, visible: Option<&str>) -> u32 {
    match count {
        Ok(count) => match usable(count, visible) {
            Ok(count) => {
                tracing::info!(count, "GPUs were found");
                count
            }
            Err(why) => {
                tracing::warn!(count, "GPUs are not offered: {why}");
                0
            }
        },
        // As on most machines.
        Err(error) => {
            tracing::debug!(%error, "no GPUs were found: NVIDIA's driver does not answer");
            0
        }
    }
}

/// How many of so many GPUs this process may hand out. They are numbered from 0, as the driver numbers them, so a choice
/// among them is understood only if it is the first ones.
fn usable(count: u32, visible: Option<&str>) -> Result<u32, String> {
    let Some(list) = visible else { return Ok(count) };
    let chosen = list.split(',').map(str::trim).filter(|device| !device.is_empty());
    let mut first = 0;
    for device in chosen {
        if device.parse() != Ok(first) {
            return Err(format!(
                "{VISIBLE} is \"{list}\", and devices are handed to tasks by their numbers from 0 on; unset it, or \
                 say how many there are with --gpus N"
            ));
        }
        first += 1;
    }
    Ok(first.min(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_has_none() {
        assert_eq!(found_by(Err(NvmlError::DriverNotLoaded), None), 0);
        assert_eq!(found_by(Err(NvmlError::DriverNotLoaded), Some("0")), 0);
        assert_eq!(found_by(Ok(4), None), 4);
        assert_eq!(found_by(Ok(4), Some("3")), 0);
        // Whatever there is here: asking does no harm, and gives the same again.
        assert_eq!(found(), found());
    }

    #[test]
    fn the_first_ones_may_be_chosen() {
        for (visible, usable_here) in [(None, 4), (Some("0,1"), 2), (Some(" 0 , 1,2 "), 3), (Some(""), 0)] {
            assert_eq!(usable(4, visible), Ok(usable_here), "{visible:?}");
        }
        assert_eq!(usable(2, Some("0,1,2")), Ok(2), "there are no more");
        for visible in ["1", "1,0", "0,2", "GPU-8932f937", "-1", "NoDevFiles"] {
            let why = usable(4, Some(visible)).expect_err(visible);
            assert!(why.contains("--gpus N") && why.contains(visible), "{why}");
        }
    }
}
