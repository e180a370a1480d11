//! The page `docs/field-cases.md` is the index: every case has its row and its tests, and every test here its case.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Numbers of the cases. They stay, so there are gaps.
const CASES: [u32; 43] = [
    1, 2, 3, 4, 6, 7, 9, 10, 11, 14, 15, 17, 18, 19, 20, 22, 23, 24, 25, 27, 28, 30, 31, 32, 34, 35, 36, 37, 38, 39, 40, 41, 43, 46, 47,
    48, 49, 50, 51, 53, 54, 56, 57,
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Number and tests of each row of the page.
fn rows() -> Vec<(u32, Vec<String>)> {
    let page = std::fs::read_to_string(root().join("docs/field-cases.md")).unwrap();
    let mut rows = Vec::new();
    for line in page.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let Some(number) = cells.first().and_then(|cell| cell.parse().ok()) else { continue };
        assert_eq!(cells.len(), 5, "{line}");
        assert!(cells.iter().all(|cell| !cell.is_empty()), "{line}");
        let tests = cells[4].split('`').skip(1).step_by(2).map(str::to_owned).collect();
        rows.push((number, tests));
    }
    rows
}

/// Names of the tests in the Rust files of a folder.
fn tests_in(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_in(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                if let Some(rest) = line.strip_prefix("fn ").filter(|_| is_test) {
                    found.insert(rest.split('(').next().unwrap().to_owned());
                }
                // Other attributes, and comments, may stand between.
                is_test = line == "#[test]" || is_test && (line.starts_with("#[") || line.starts_with("//"));
            }
        }
    }
}

fn tests_of(folders: &[&str]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for folder in folders {
        tests_in(&root().join(folder), &mut found);
    }
    found
}

#[test]
fn every_case_has_a_row_and_every_row_a_test_that_is_there() {
    let rows = rows();
    assert_eq!(rows.iter().map(|(number, _)| *number).collect::<Vec<_>>(), CASES);
    let known = tests_of(&["tests/tests", "tracer-common/src", "tracer-userspace/src", "tracer-userspace/tests", "xtask/src"]);
    for (number, tests) in rows {
        assert!(!tests.is_empty(), "case {number} has no test");
        for test in tests {
            assert!(known.contains(&test), "case {number}: there is no test `{test}`");
        }
    }
}

#[test]
fn every_test_here_stands_in_the_index() {
    let listed: BTreeSet<String> = rows().into_iter().flat_map(|(_, tests)| tests).collect();
    let own = ["every_case_has_a_row_and_every_row_a_test_that_is_there", "every_test_here_stands_in_the_index"];
    let unlisted: Vec<_> = tests_of(&["tests/tests/field_cases"]).into_iter().filter(|test| !listed.contains(test)).collect();
    assert_eq!(unlisted, own);
}
