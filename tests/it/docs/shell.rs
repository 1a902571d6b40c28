//! The commands of a page, as a shell reads them.

use std::iter::Peekable;
use std::str::Chars;

/// The commands of a page: lines of a console that begin with `$ `, and pieces of code in the text.
pub fn commands(page: &str) -> Vec<Vec<String>> {
    let (mut found, mut fence) = (Vec::new(), None);
    let joined = page.replace("\\\n", " ");
    for line in joined.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            fence = if fence.is_some() { None } else { Some(language) };
        } else if let Some(language) = fence {
            let typed = line.trim_start().strip_prefix("$ ").filter(|_| language == "console");
            found.extend(typed.map(split).unwrap_or_default());
        } else {
            found.extend(line.split('`').skip(1).step_by(2).flat_map(split));
        }
    }
    found
}

/// The simple commands of a line: pipes, lists and substitutions separate them. Variables have the value 1, and what is
/// assigned to others before a command is left out.
pub fn split(line: &str) -> Vec<Vec<String>> {
    let (mut commands, mut command, mut word) = (Vec::new(), Vec::new(), None::<String>);
    let mut chars = line.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\'' => {
                let quoted = chars.by_ref().take_while(|char| *char != '\'');
                word.get_or_insert_default().extend(quoted);
            }
            '"' => double_quoted(&mut chars, word.get_or_insert_default()),
            '#' if word.is_none() => break,
            '$' if chars.peek() != Some(&'(') => variable(&mut chars, word.get_or_insert_default()),
            '$' | '(' | ')' | '|' | '&' | ';' => {
                command.extend(word.take());
                commands.push(std::mem::take(&mut command));
            }
            space if space.is_whitespace() => command.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    command.extend(word);
    commands.push(command);
    let assigned = |word: &String| {
        let name = word.split_once('=').map(|(name, _)| name);
        name.is_some_and(|name| name.chars().all(|char| char.is_ascii_uppercase() || char == '_'))
    };
    for command in &mut commands {
        let assignments = command.iter().take_while(|word| assigned(word)).count();
        command.drain(..assignments);
    }
    commands.retain(|command| !command.is_empty());
    commands
}

fn double_quoted(chars: &mut Peekable<Chars<'_>>, word: &mut String) {
    while let Some(char) = chars.next() {
        match char {
            '"' => return,
            '\\' => word.extend(chars.next()),
            '$' => variable(chars, word),
            other => word.push(other),
        }
    }
}

fn variable(chars: &mut Peekable<Chars<'_>>, word: &mut String) {
    while chars.next_if(|char| char.is_ascii_alphanumeric() || *char == '_').is_some() {}
    word.push('1');
}
