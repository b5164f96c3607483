//! Bugs that can be planted in the product, to prove that a simulation would find them.
//!
//! A site reads `mutant!("M04")`: constant false, unless this crate is built with the feature
//! `mutants`. No manifest asks for it; only the simulator is built with it, in a target directory
//! of its own. There one bug may be planted, once, before anything else is done, and every site
//! with its name answers true from then on.
//!
//! What each name means, and what should find it, is in the simulator's catalogue
//! (`sim-tests/src/mutants/catalogue.rs`).

/// Whether the bug of this name is planted: false, and free, in every build but the simulator's.
#[macro_export]
macro_rules! mutant {
    ($id:literal) => {
        $crate::mutants::is_planted($id)
    };
}

/// Whether the bug `id` is planted.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn is_planted(_id: &str) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub use planted::{is_any_planted, is_planted, plant, was_reached};

#[cfg(feature = "mutants")]
mod planted {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    static PLANTED: OnceLock<String> = OnceLock::new();
    static REACHED: AtomicBool = AtomicBool::new(false);

    /// Plants the bug `id` in this process, for good.
    ///
    /// # Panics
    /// Another one is planted: a finding would not say whose it is.
    pub fn plant(id: &str) {
        assert_eq!(PLANTED.get_or_init(|| id.to_owned()), id, "one bug for each process");
    }

    /// Whether the bug `id` is planted.
    #[inline]
    pub fn is_planted(id: &str) -> bool {
        let planted = PLANTED.get().is_some_and(|planted| planted == id);
        if planted {
            REACHED.store(true, Ordering::Relaxed);
        }
        planted
    }

    /// Whether a bug is planted in this process.
    pub fn is_any_planted() -> bool {
        PLANTED.get().is_some()
    }

    /// Whether the place of the planted bug has been reached: a bug that nobody finds may never have
    /// been.
    pub fn was_reached() -> bool {
        REACHED.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(not(feature = "mutants"))]
    fn nothing_is_planted_in_the_product() {
        const PLANTED: bool = crate::mutant!("M04");
        const { assert!(!PLANTED) };
    }

    #[test]
    #[cfg(feature = "mutants")]
    fn one_bug_is_planted_for_good() {
        assert!(!crate::mutant!("M04") && !super::was_reached());
        super::plant("M04");
        super::plant("M04");
        assert!(crate::mutant!("M04") && !crate::mutant!("M05") && super::was_reached());
        assert!(std::panic::catch_unwind(|| super::plant("M05")).is_err());
    }
}
