#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| asft_fuzz::request(data));
