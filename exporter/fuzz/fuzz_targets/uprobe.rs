#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| namespan_fuzz::uprobe::check(data));
