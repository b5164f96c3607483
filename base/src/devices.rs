//! Numbered devices, such as GPUs: whole ones, or parts of one that several share.

/// What is free of each device, in thousandths; the index is its number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    free: Vec<u64>,
}

/// One device.
const WHOLE: u64 = 1000;

impl Devices {
    /// So many, all free.
    pub fn new(count: u64) -> Self {
        Devices { free: (0..count).map(|_| WHOLE).collect() }
    }

    /// Whether an amount means anything: whole devices, or a part of one.
    pub fn is_amount(milli: u64) -> bool {
        milli < WHOLE || milli.is_multiple_of(WHOLE)
    }

    /// Whether so much can be had now.
    pub fn fits(&self, milli: u64) -> bool {
        if milli < WHOLE {
            return milli == 0 || self.free.iter().any(|free| *free >= milli);
        }
        let whole = self.free.iter().filter(|free| **free == WHOLE).count() as u64;
        Self::is_amount(milli) && whole * WHOLE >= milli
    }

    /// Takes so much, and says of which devices: whole ones that are free, lowest numbers first; or a part of the
    /// one that is left with least, so that whole ones stay whole. Panics when it does not fit: callers ask
    /// [`Devices::fits`] first.
    pub fn take(&mut self, milli: u64) -> Vec<u32> {
        assert!(self.fits(milli), "took {milli} thousandths of a device from {:?}", self.free);
        if milli == 0 {
            return Vec::new();
        }
        let mut numbered = self.free.iter_mut().zip(0..);
        if milli < WHOLE {
            let enough = numbered.filter(|(free, _)| **free >= milli);
            let (free, number) = enough.min_by_key(|(free, number)| (**free, *number)).expect("it fits");
            *free -= milli;
            return vec![number];
        }
        let whole = numbered.by_ref().filter(|(free, _)| **free == WHOLE);
        let take = |(free, number): (&mut u64, u32)| {
            *free = 0;
            number
        };
        whole.take((milli / WHOLE) as usize).map(take).collect()
    }

    /// Takes so much, as devices with the same numbers that others may take from. Panics as [`Devices::take`].
    pub fn carve(&mut self, milli: u64) -> Devices {
        let mut carved = Devices { free: vec![0; self.free.len()] };
        for number in self.take(milli) {
            carved.free[number as usize] = milli.min(WHOLE);
        }
        carved
    }

    /// Puts back all that is free of what was carved out.
    pub fn join(&mut self, carved: &Devices) {
        for ((free, back), number) in self.free.iter_mut().zip(&carved.free).zip(0u32..) {
            *free += back;
            assert!(*free <= WHOLE, "device {number} was given back twice");
        }
    }

    /// Puts back what was taken of `devices`.
    pub fn give(&mut self, devices: &[u32], milli: u64) {
        for number in devices {
            let free = &mut self.free[*number as usize];
            *free += milli.min(WHOLE);
            assert!(*free <= WHOLE, "device {number} was given back twice");
        }
    }

    /// How much is free of all together, in thousandths.
    pub fn free_milli(&self) -> u64 {
        self.free.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_share_a_device_and_whole_ones_stay_whole() {
        let mut devices = Devices::new(3);
        assert_eq!(devices.take(500), [0]);
        assert_eq!(devices.take(250), [0], "the one that is left with least");
        assert_eq!(devices.take(500), [1]);
        assert_eq!(devices.take(1000), [2]);
        assert!(!devices.fits(1000) && !devices.fits(600) && devices.fits(500) && devices.fits(0));
        devices.give(&[1], 500);
        assert_eq!(devices.take(1000), [1]);
        devices.give(&[0], 250);
        devices.give(&[0], 500);
        devices.give(&[2], 1000);
        assert_eq!(devices.take(2000), [0, 2]);
        assert_eq!(devices.free_milli(), 0);
    }

    #[test]
    fn what_is_carved_out_has_the_same_numbers_and_comes_back() {
        let mut devices = Devices::new(3);
        assert_eq!(devices.take(1000), [0]);
        let (mut two, mut half) = (devices.carve(1000), devices.carve(500));
        assert!(!devices.fits(1000) && devices.fits(500));
        assert_eq!((two.take(400), half.take(300)), (vec![1], vec![2]));
        assert!(!two.fits(1000) && !half.fits(300));
        devices.join(&two);
        devices.join(&half);
        // What tasks still use comes back by itself.
        devices.give(&[1], 400);
        devices.give(&[2], 300);
        devices.give(&[0], 1000);
        assert_eq!(devices, Devices::new(3));
        assert_eq!(devices.carve(0).free_milli(), 0);
    }

    #[test]
    fn one_and_a_half_devices_cannot_be_had() {
        assert!(!Devices::is_amount(1500) && Devices::is_amount(2000) && Devices::is_amount(1));
        assert!(!Devices::new(4).fits(1500));
    }
}
