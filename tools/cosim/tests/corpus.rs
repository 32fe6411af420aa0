//! Replays the corpus of past differences, and a few random cases of every code.

use cosim::generate::Generator;
use cosim::host::HostExecutor;
use cosim::stub::StubExecutor;
use cosim::{Case, Executor, compare, corpus, report};

fn check(host: &mut HostExecutor, tested: &mut dyn Executor, case: &Case) -> bool {
    let Some(other) = tested.execute(case) else { return false };
    let truth = host.execute(case).expect("the host runs everything");
    let difference = compare::compare(case, &truth, &other);
    let text = report::describe(case, &truth, &difference, tested.name());
    assert!(difference.lines.is_empty(), "{text}");
    true
}

/// One test, as a process has one host executor.
#[test]
fn corpus_and_random_cases_agree_with_the_host() {
    let mut host = HostExecutor::new().expect("the host executor runs here");
    let mut stubs = StubExecutor::new().expect("this host runs stubs");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("a corpus")
        .map(|file| file.expect("a file").path())
        .collect();
    files.sort();
    for path in files.iter().filter(|path| path.extension().is_some_and(|kind| kind == "txt")) {
        let text = std::fs::read_to_string(path).expect("a readable file");
        for case in corpus::decode(&text).expect("a valid corpus") {
            check(&mut host, &mut stubs, &case);
            let again = corpus::decode(&corpus::encode(&case)).expect("what was encoded decodes");
            assert_eq!(corpus::encode(&again[0]), corpus::encode(&case));
        }
    }
    let generator = Generator::new(7, None);
    let compared = (0..40_000)
        .filter_map(|index| generator.case(index))
        .filter(|(_, case)| check(&mut host, &mut stubs, case))
        .count();
    assert!(compared > 25_000, "only {compared} cases");
}
