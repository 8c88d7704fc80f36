#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| namespan_fuzz::elf::check(data));
