//! What the documentation shows is what happens: its commands exist, and its listings are what they print.

#![expect(clippy::unwrap_used, reason = "a test that fails says so")]
use std::fs;
use std::path::PathBuf;

use clap::Parser;
use tracer_userspace::replay::{ReplayArgs, replay};

#[derive(Parser)]
struct Replay {
    #[command(flatten)]
    args: ReplayArgs,
}

fn documents() -> Vec<(PathBuf, String)> {
    let root = xtask::workspace::root();
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let files = docs.chain([root.join("README.md")]).filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    files.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn every_xtask_command_in_the_documentation_exists() {
    let mut found = 0;
    for (path, text) in documents() {
        for (_, after) in text.match_indices("cargo xtask ").map(|(at, word)| (at, &text[at + word.len()..])) {
            let command = after.split(['`', '\n', ';', '|']).next().unwrap_or_default().trim();
            // `[--release]` and WORDS in capitals are placeholders; what follows `--` is another program's.
            let words = command.split_whitespace().filter(|word| !word.starts_with('[')).take_while(|word| !["ARGS]", "--"].contains(word));
            let words: Vec<&str> = words.filter(|word| word.chars().any(|c| c.is_lowercase() || c.is_ascii_digit())).collect();
            if words == ["--help"] {
                continue;
            }
            let parsed = xtask::cli::Arguments::try_parse_from([&["cargo xtask"], words.as_slice()].concat());
            // A flag may be shown before the word that it wants.
            let known = parsed.as_ref().err().is_none_or(|error| error.kind() == clap::error::ErrorKind::MissingRequiredArgument);
            assert!(known, "{}: `cargo xtask {command}`: {}", path.display(), parsed.err().unwrap());
            found += 1;
        }
    }
    assert!(found > 10, "only {found} commands found");
}

/// `KAFKA_TRACER_UPDATE=1 cargo test -p tests --test readme` writes the listing anew.
#[test]
fn the_listing_in_the_readme_is_what_replay_prints() {
    const COMMAND: &str = "$ cargo run --quiet --package tracer-userspace -- replay ";
    let root = xtask::workspace::root();
    let path = root.join("README.md");
    let text = fs::read_to_string(&path).unwrap();
    let start = text.find(COMMAND).expect("the README shows a replay");
    let command_end = start + text[start..].find('\n').unwrap() + 1;
    let end = start + text[start..].find("```").unwrap();
    let words: Vec<&str> = text[start + COMMAND.len()..command_end].split_whitespace().collect();

    let mut args = Replay::try_parse_from([&["replay"], words.as_slice()].concat()).unwrap().args;
    args.files = args.files.iter().map(|file| root.join(file)).collect();
    let mut printed = Vec::new();
    replay(&args, &mut printed).unwrap();
    let printed = String::from_utf8(printed).unwrap();
    let printed: Vec<&str> = printed.lines().map(str::trim_end).collect();
    let shown: Vec<&str> = text[command_end..end].lines().collect();
    if std::env::var_os("KAFKA_TRACER_UPDATE").is_some() {
        fs::write(&path, format!("{}{}\n{}", &text[..command_end], printed.join("\n"), &text[end..])).unwrap();
    } else {
        assert_eq!(shown, printed, "KAFKA_TRACER_UPDATE=1 writes it anew");
    }
}
