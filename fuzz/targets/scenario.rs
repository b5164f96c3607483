#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mobula_sim_tests::core::scenario::hostile(bytes));
