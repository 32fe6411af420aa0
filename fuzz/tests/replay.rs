//! Replays the corpus through every target, without libFuzzer: what was found once stays found.

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

fn inputs(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder:?}: {e}"));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn replay(name: &str) {
    let target = fuzz::TARGETS.iter().find(|target| target.name == name).unwrap();
    let inputs = inputs(name);
    assert!(!inputs.is_empty(), "no inputs for {name}");
    for path in inputs {
        let data = std::fs::read(&path).unwrap();
        assert!(catch_unwind(|| (target.run)(&data)).is_ok(), "{path:?}");
    }
    // What every fuzzer starts with.
    (target.run)(&[]);
    (target.run)(&[0xff; 64]);
}

macro_rules! replays {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            replay(stringify!($name));
        }
    )*};
}

replays!(virtio kernel disk saved checkpoint guest chipset values log);
