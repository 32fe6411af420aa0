//! Real programs in Debian: python's tests, stress-ng, sqlite and redis, gcc; each run twice.

#![forbid(unsafe_code)]

use std::time::Duration;

use whole::soak::{Job, fetched, is_full, length};

const HOURS: Duration = Duration::from_secs(4 * 3600);

/// Modules of the standard library, those of the short run first.
const MODULES: &str = "test_json test_struct test_math test_heapq test_collections test_zlib \
    test_re test_itertools test_functools test_random test_statistics test_datetime test_hashlib \
    test_decimal test_fractions test_cmath test_bisect test_array test_base64 test_binascii \
    test_csv test_string test_textwrap test_unicodedata test_pickle test_copy test_gzip test_bz2 \
    test_lzma test_configparser test_ctypes test_mmap test_threading test_subprocess test_zipfile \
    test_xml_etree";

fn job(name: &'static str, script: &str, settings: String, files: &[(&str, &[u8])]) -> String {
    let output = Job { name, files, settings, script, time_max: HOURS }.twice(|_| ());
    output.lines().filter(|line| !line.starts_with("LOG ")).for_each(|line| println!("  {line}"));
    output
}

/// The words after `key` in a line of `output`.
#[track_caller]
fn said<'a>(output: &'a str, key: &str) -> &'a str {
    let line = output.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap_or_else(|| panic!("no {key:?} in {output}")).trim()
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn python_tests_itself() {
    let count = length("modules", 3, 36) as usize;
    let modules: Vec<&str> = MODULES.split_whitespace().take(count).collect();
    let settings = format!("MODULES='{}'", modules.join(" "));
    let tests = fetched("python-tests.deb");
    let script = include_str!("../soak/python.sh");
    let output = job("python", script, settings, &[("python-tests.deb", &tests)]);
    assert_eq!(said(&output, "Tests result: "), "SUCCESS", "{output}");
    let all = format!("All {} tests OK.", modules.len());
    assert!(output.lines().any(|line| line == all), "no {all:?} in {output}");
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn stress_ng_verifies() {
    let each = length("stress-seconds", 1, 10);
    let script = include_str!("../soak/stress.sh");
    let (most, count) = if is_full() { (9, 20) } else { (1, 6) };
    let output = job("stress-ng", script, format!("EACH={each} MOST={most}"), &[]);
    for class in ["cpu", "vm", "memory", "context-switch", "fork", "signal"] {
        let line = format!("STRESS {class} ok");
        assert!(output.lines().any(|said| said == line), "no {line:?} in {output}");
    }
    assert_eq!(said(&output, &format!("STRESS {count} ")), "stressors passed");
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn databases_keep_what_they_are_given() {
    let rows = length("rows", 20_000, 300_000);
    let requests = length("requests", 2_000, 50_000);
    let settings = format!("ROWS={rows} REQUESTS={requests}");
    let output = job("databases", include_str!("../soak/databases.sh"), settings, &[]);
    for what in ["joined", "rows"] {
        let key = |who: &str| format!("{who} {what} ");
        assert_eq!(said(&output, &key("SQLITE")), said(&output, &key("EXPECT")), "{what}");
    }
    assert_eq!(said(&output, "SQLITE check "), "ok");
    assert_eq!(said(&output, "REDIS values "), "ok");
    assert_eq!(said(&output, "REDIS digest ").len(), 40);
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn gcc_builds_a_program_that_passes_its_tests() {
    let source = fetched("source.tar.gz");
    let script = include_str!("../soak/gcc.sh");
    let settings = format!("WHOLE={}", u8::from(is_full()));
    let output = job("gcc", script, settings, &[("source.tar.gz", &source)]);
    let lines: u64 = said(&output, "GCC lines ").parse().expect("a number of lines");
    assert!(lines > 10_000, "{output}");
    if is_full() {
        let (total, pass) = (said(&output, "GCC # TOTAL:"), said(&output, "GCC # PASS:"));
        assert!(total == pass && total != "0", "{output}");
    } else {
        let last = "GCC All invalid UTF8 JIT regression tests are successfully passed.";
        assert!(output.lines().any(|line| line == last), "{output}");
    }
}
