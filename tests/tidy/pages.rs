//! What the pages tell people to type is there: each verb and each long option.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// The commands of this program in a page: those in code blocks, and those between backticks.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
            continue;
        }
        let pieces: Vec<&str> =
            if in_block { vec![line] } else { line.split('`').skip(1).step_by(2).collect() };
        for piece in pieces {
            let piece = piece.trim().trim_start_matches("$ ").trim_start_matches("sudo ");
            // What stands behind it, in a column or a comment of its own.
            let piece = piece.split("   ").next().unwrap_or_default();
            let piece = piece.split(['#', '|', '·', ';']).next().unwrap_or_default().trim();
            if piece.starts_with("gitopsd ") {
                found.push(piece.to_owned());
            }
        }
    }
    found
}

/// What is wrong with a command: a verb or an option that is not there.
fn unknown(command: &str, helps: &mut BTreeMap<String, Option<String>>) -> Option<String> {
    // What is run inside a container has options of its own.
    let ours = command.split(" -- ").next().unwrap_or_default();
    let mut words = ours.split_whitespace().skip(1).filter(|word| !word.starts_with('…'));
    let verb = words.find(|word| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'))?;
    if verb.starts_with('-') || verb == "help" {
        return None;
    }
    let help = helps.entry(verb.to_owned()).or_insert_with(|| {
        let output = Command::new(env!("CARGO_BIN_EXE_gitopsd")).args([verb, "--help"]).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    });
    let Some(mut help) = help.clone() else { return Some(format!("there is no verb `{verb}`")) };
    // A verb of verbs: the options are those of the second one.
    let mut words = words.peekable();
    let second = words.peek().copied().filter(|word| !word.starts_with('-') && help.contains("\nCommands:"));
    if let Some(second) = second {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gitopsd"));
        let output = command.args([verb, second, "--help"]).output().unwrap();
        if !output.status.success() {
            return Some(format!("`{verb}` has no `{second}`"));
        }
        help = String::from_utf8(output.stdout).unwrap();
    }
    let missing = words.filter_map(|word| {
        let option = word.trim_matches(['[', ']']);
        let option = option.split('=').next().unwrap_or_default();
        (option.starts_with("--") && !help.contains(option)).then(|| format!("`{verb}` has no `{option}`"))
    });
    missing.into_iter().next()
}

#[test]
fn what_the_pages_tell_people_to_type_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md"), root.join("SECURITY.md")];
    let docs = std::fs::read_dir(root.join("docs")).unwrap();
    pages.extend(docs.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some()));
    let mut helps = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut count = 0;
    for page in pages {
        for command in commands(&std::fs::read_to_string(&page).unwrap()) {
            count += 1;
            let why = unknown(&command, &mut helps);
            wrong.extend(why.map(|why| format!("{}: {command}: {why}", page.display())));
        }
    }
    assert!(count > 40, "{count} commands were found");
    super::none(wrong);
}

#[test]
fn a_command_that_is_not_there_is_found() {
    let text =
        "see `gitopsd stauts`\n```\n$ sudo gitopsd gc --wet-run      # x\ngitopsd sync --wait    look\n```\n";
    let found = commands(text);
    assert_eq!(found, ["gitopsd stauts", "gitopsd gc --wet-run", "gitopsd sync --wait"]);
    let mut helps = BTreeMap::new();
    let wrong: Vec<bool> = found.iter().map(|command| unknown(command, &mut helps).is_some()).collect();
    assert_eq!(wrong, [true, true, false]);
}
