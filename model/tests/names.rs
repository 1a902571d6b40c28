//! The functions and files in the table of `src/lib.rs` exist in the program.

use std::fs;
use std::path::Path;

/// Name and text of every file below `folder`.
fn read_all(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).expect("the folder exists") {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            read_all(&path, found);
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.push((name, fs::read_to_string(&path).unwrap_or_default()));
    }
}

/// The names between backticks in the last column of the table.
fn names_in_table() -> Vec<&'static str> {
    let table = include_str!("../src/lib.rs").lines().filter(|line| line.starts_with("//! | `"));
    let columns = table.filter_map(|line| line.trim_end_matches(" |").rsplit(" | ").next());
    columns.flat_map(|column| column.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn every_function_and_file_that_the_table_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    read_all(&root.join("src"), &mut files);
    read_all(&root.join("migrations"), &mut files);
    let exists = |name: &str| match name.contains('.') {
        true => files.iter().any(|(file, _)| file == name),
        false => files.iter().any(|(_, text)| has_function(text, name)),
    };
    let names = names_in_table();
    assert!(names.len() > 30, "the table was not found: {names:?}");
    let missing: Vec<_> = names.into_iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "not in the program: {missing:?}");
}

fn has_function(text: &str, name: &str) -> bool {
    [format!("fn {name}("), format!("fn {name}<")].iter().any(|function| text.contains(function))
}
