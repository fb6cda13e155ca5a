//! Every parser of input from outside, fed with a stored corpus and a fixed number of seeded mutations of it: no panic, no more
//! memory than a small multiple of the input, the same on every run. Runs on stable Rust in the pure tier, within seconds.
//!
//! More runs for a while: `CRYPTVOL_FUZZ_RUNS=1000000 cargo test -p cryptvol-node-agent --release --lib fuzz::`. What it
//! finds goes into the corpus.

mod memory;
pub(crate) mod mutator;
mod node;
mod records;
mod targets;

use mutator::Mutator;

/// Mutations a target in the pure tier.
const RUNS: u64 = 3000;

/// Feeds `parse` with the corpus as it is and with mutations. `most` is the memory it may take for an input of so many bytes.
fn feed(
    target: &str,
    corpus: &[Vec<u8>],
    most: impl Fn(usize) -> usize,
    mut parse: impl FnMut(&[u8]),
) {
    let runs = std::env::var("CRYPTVOL_FUZZ_RUNS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(RUNS);
    let mut check = |seed: Option<u64>, input: &[u8]| {
        let (peak, outcome) = memory::peak(|| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| parse(input)))
        });
        assert!(
            outcome.is_ok(),
            "{target}: panic at seed {seed:?}: {}",
            shown(input)
        );
        assert!(
            peak <= most(input.len()),
            "{target}: {peak} bytes of memory for {} bytes at seed {seed:?}: {}",
            input.len(),
            shown(input)
        );
    };
    assert!(!corpus.is_empty(), "{target}: no corpus");
    for input in corpus {
        check(None, input);
    }
    for seed in 0..runs {
        let input = Mutator::new(seed).mutate(corpus);
        check(Some(seed), &input);
    }
}

fn shown(input: &[u8]) -> String {
    input
        .iter()
        .take(400)
        .flat_map(|b| b.escape_ascii())
        .map(char::from)
        .collect()
}

/// Non-empty lines of a corpus file; lines that begin with `#` say where the others come from.
fn lines(text: &str) -> Vec<Vec<u8>> {
    text.lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .map(|l| l.as_bytes().to_vec())
        .collect()
}

/// The page that lists what is read from outside names each of these tests, and no other.
#[test]
fn the_page_names_every_target() {
    let sources = [
        include_str!("node.rs"),
        include_str!("records.rs"),
        include_str!("targets.rs"),
    ];
    let mut targets: Vec<_> = sources
        .iter()
        .flat_map(|text| text.split("#[test]\nfn ").skip(1))
        .filter_map(|rest| rest.split('(').next())
        .collect();
    let page = include_str!("../../../docs/parsers.md");
    let rows = page.lines().filter_map(|l| l.strip_suffix("` |"));
    let mut named: Vec<_> = rows.filter_map(|row| row.rsplit('`').next()).collect();
    targets.sort_unstable();
    named.sort_unstable();
    named.dedup();
    assert_eq!(named, targets);
}
