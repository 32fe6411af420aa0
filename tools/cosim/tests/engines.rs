//! Replays the corpus of past differences on both engines, and a few random cases.

use cosim::engine::EngineExecutor;
use cosim::generate::Generator;
use cosim::host::HostExecutor;
use cosim::{Case, Executor, compare, corpus, report};

/// What differs, if anything does.
fn difference(host: &mut HostExecutor, tested: &mut dyn Executor, case: &Case) -> Option<String> {
    let other = tested.execute(case).expect("an engine runs everything");
    let truth = host.execute(case).expect("the host runs everything");
    let difference = compare::compare(case, &truth, &other);
    let text = || report::describe(case, &truth, &difference, tested.name());
    (!difference.lines.is_empty()).then(text)
}

/// One test, as a process has one host executor.
#[test]
fn engines_agree_with_the_host() {
    let mut host = HostExecutor::new().expect("the host executor runs here");
    let interp = || Box::new(interp::Interp::new().expect("this host runs stubs"));
    let mut interpreter = EngineExecutor::new(interp()).expect("a guest");
    let options =
        translate::Options { block_insns_max: 1, links: false, ..translate::Options::default() };
    let translator = translate::Translator::new(interp(), options).expect("a translator");
    let mut translator = EngineExecutor::new(Box::new(translator)).expect("a guest");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("a corpus")
        .map(|file| file.expect("a file").path())
        .collect();
    files.sort();
    let mut cases = Vec::new();
    for path in files.iter().filter(|path| path.extension().is_some_and(|kind| kind == "txt")) {
        let text = std::fs::read_to_string(path).expect("a readable file");
        cases.extend(corpus::decode(&text).expect("a valid corpus"));
    }
    let generator = Generator::new(11, None);
    cases.extend((0..20_000).filter_map(|index| Some(generator.case(index)?.1)));
    let mut differences = Vec::new();
    for case in &cases {
        differences.extend(difference(&mut host, &mut interpreter, case));
        differences.extend(difference(&mut host, &mut translator, case));
    }
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
}
