//! Links lead somewhere, and files that are named exist.

use std::fs;
use std::path::Path;

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Most files are named from the root of the repository.
const FOLDERS: [&str; 10] = [
    "deploy/",
    "devstack/",
    "docs/",
    "examples/",
    "loadtest/",
    "migrations/",
    "model/",
    "proto/",
    "scripts/",
    "src/",
];
/// What was written about an earlier version may name what that version had.
pub const HISTORY: &str = "CHANGELOG.md";

/// Every Markdown file by its path from the root, and its text.
pub fn pages() -> Vec<(String, String)> {
    let pages = files("", "md");
    assert!(pages.len() > 10, "{pages:?}");
    pages
}

/// All files below a folder that have this extension, one after the other.
pub fn text_of_files(folder: &str, extension: &str) -> String {
    files(folder, extension).into_iter().map(|(_, text)| text).collect()
}

fn files(folder: &str, extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(Path::new(ROOT).join(folder)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            // What is built and what is installed is not part of the repository.
            if !name.starts_with('.') && !["target", "node_modules"].contains(&name.as_str()) {
                found.extend(files(&path, extension));
            }
        } else if kind.is_file() && path.ends_with(&format!(".{extension}")) {
            let text = fs::read_to_string(entry.path()).unwrap();
            found.push((path, text));
        }
    }
    found
}

pub fn lead_somewhere() {
    let pages = pages();
    let mut followed = 0;
    for (page, text) in &pages {
        for target in targets(text) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = match path {
                "" => page.clone(),
                path => resolved(page, path),
            };
            assert!(Path::new(ROOT).join(&path).exists(), "{page} links to {target}");
            if !anchor.is_empty() {
                let there = pages.iter().find(|(page, _)| *page == path);
                let (_, there) = there.unwrap_or_else(|| panic!("{page} links to {target}"));
                let mut anchors = headings(there).map(slug);
                assert!(anchors.any(|heading| heading == anchor), "{page} links to {target}");
            }
            followed += 1;
        }
    }
    assert!(followed > 30, "{followed} links");
}

pub fn files_exist() {
    for (page, text) in pages().iter().filter(|(page, _)| page != HISTORY) {
        for line in prose(text) {
            let code = line.split('`').skip(1).step_by(2);
            for path in code.filter(|code| FOLDERS.iter().any(|folder| code.starts_with(folder))) {
                let exact = !path.contains([' ', '*', '{']);
                assert!(!exact || Path::new(ROOT).join(path).exists(), "{page} names {path}");
            }
        }
    }
}

/// The lines outside of blocks of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

fn headings(text: &str) -> impl Iterator<Item = &str> {
    let text = prose(text).filter(|line| line.starts_with('#'));
    text.map(|line| line.trim_start_matches('#').trim())
}

/// The relative targets of the links of a page.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    let links = prose(text).flat_map(|line| line.split("](").skip(1));
    let targets = links.filter_map(|rest| Some(rest.split_once(')')?.0));
    targets.filter(|target| !target.contains("://"))
}

/// A relative path, from the root.
fn resolved(page: &str, path: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        if part == ".." {
            assert!(parts.pop().is_some(), "{page} links to {path}, which is outside");
        } else if part != "." {
            parts.push(part);
        }
    }
    parts.join("/")
}

/// The anchor that GitHub gives a heading.
fn slug(heading: &str) -> String {
    let kept = heading.chars().filter(|char| char.is_alphanumeric() || " -_".contains(*char));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}
