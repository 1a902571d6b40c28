//! Each command of the documentation works as it is printed, as far as that can be seen without its tool: options,
//! methods, requests, targets, files and names of tests exist.

use std::path::Path;

use super::links::{ROOT, pages, text_of_files};
use super::shell;
use super::tools::{Json, decode};

/// What the commands are compared with.
struct Known {
    makefile: String,
    lock: String,
    tests: String,
}

pub fn work() {
    let read = |file: &str| std::fs::read_to_string(Path::new(ROOT).join(file)).unwrap();
    let known = Known {
        makefile: read("Makefile"),
        lock: read("Cargo.lock"),
        tests: text_of_files("tests/it", "rs"),
    };
    let mut called = 0;
    for (page, text) in pages() {
        let in_page = shell::commands(&text);
        let calls = in_page.iter().filter(|command| calls_a_method(command)).count();
        // Each is found, whatever stands in front of it.
        let printed = text.matches("grpcurl -").count() + text.matches("buf curl -").count();
        assert_eq!(calls, printed, "{page}: commands of grpcurl and buf curl");
        called += calls;
        for command in &in_page {
            known.check(command).unwrap_or_else(|why| panic!("{page}: {command:?}: {why}"));
        }
    }
    assert!(called > 10, "{called} calls");

    // What `make run` prints.
    let script = read("scripts/run.sh");
    let printed: Vec<_> = script.lines().flat_map(shell::split).collect();
    let calls: Vec<_> = printed.iter().filter(|command| calls_a_method(command)).collect();
    assert_eq!(calls.len(), 2, "{calls:?}");
    for command in calls {
        known.check(command).unwrap_or_else(|why| panic!("scripts/run.sh: {command:?}: {why}"));
    }
}

fn calls_a_method(command: &[String]) -> bool {
    (command[0] == "grpcurl" && command.len() > 1) || place_of_buf_curl(command).is_some()
}

/// Where the arguments of `buf curl` begin, which npx may run.
fn place_of_buf_curl(command: &[String]) -> Option<usize> {
    let curl = command.iter().position(|word| word == "curl")?;
    let buf = curl.checked_sub(1).and_then(|place| command[place].rsplit('/').next());
    // Its name alone is not a command.
    (buf == Some("buf") && command.len() > curl + 1).then_some(curl + 1)
}

impl Known {
    fn check(&self, command: &[String]) -> Result<(), String> {
        if let Some(arguments) = place_of_buf_curl(command) {
            return buf_curl(&command[arguments..]);
        }
        match command[0].as_str() {
            "grpcurl" if command.len() > 1 => grpcurl(&command[1..]),
            "make" => self.make(&command[1..]),
            "cargo" if command.get(1).is_some_and(|word| word == "test") => {
                self.test(&command[2..])
            }
            "ghz" | "k6" if command.len() > 1 => files(&command[1..]),
            _ => Ok(()),
        }
    }

    /// `make TARGET NAME=VALUE`; the drills that it names exist.
    fn make(&self, arguments: &[String]) -> Result<(), String> {
        for argument in arguments {
            match argument.split_once('=') {
                None => {
                    let target = format!("\n{argument}: ");
                    let known = self.makefile.contains(&target);
                    known.then_some(()).ok_or_else(|| format!("no target {argument}"))?;
                }
                Some(("DRILL_ARGS", options)) => {
                    let (_, only) = options.split_once("--only ").unwrap_or_default();
                    let names = only.split([',', ' ']).filter(|name| !name.is_empty());
                    for name in names.take_while(|name| !name.starts_with("--")) {
                        drill::faults::named(name).ok_or_else(|| format!("no drill {name}"))?;
                    }
                }
                Some((name, _)) => {
                    let used = self.makefile.contains(&format!("$({name})"));
                    used.then_some(()).ok_or_else(|| format!("no variable {name}"))?;
                }
            }
        }
        Ok(())
    }

    /// `cargo test -p PACKAGE` and `cargo test --test it -- FILTER`.
    fn test(&self, arguments: &[String]) -> Result<(), String> {
        let mut words = arguments.iter().skip_while(|word| *word != "-p").skip(1);
        if let Some(package) = words.next() {
            let known = self.lock.contains(&format!("\nname = \"{package}\"\n"));
            known.then_some(()).ok_or_else(|| format!("no package {package}"))?;
        }
        let filters = arguments.iter().skip_while(|word| *word != "--").skip(1);
        for filter in filters.filter(|word| !word.starts_with("--")) {
            let known = match filter.strip_prefix("drill::") {
                Some(name) => drill::faults::named(name).is_some(),
                None => self.tests.contains(&format!("\"{filter}")),
            };
            known.then_some(()).ok_or_else(|| format!("no test begins with {filter}"))?;
        }
        Ok(())
    }
}

/// `grpcurl [OPTIONS] ADDRESS METHOD`: Go's flags end at the first argument.
fn grpcurl(arguments: &[String]) -> Result<(), String> {
    let (request, plaintext, rest) =
        options(arguments, &["-d", "-H", "-protoset"], &["-v", "-plaintext"], "-plaintext")?;
    let [address, call] = rest else {
        return Err(format!("an address and a method, not {rest:?}"));
    };
    if address.starts_with("localhost:") && !plaintext {
        return Err("`make run` serves without TLS: -plaintext".to_owned());
    }
    decode(Json::Jsonpb, call, request).map(drop)
}

/// `buf curl [OPTIONS] URL`
fn buf_curl(arguments: &[String]) -> Result<(), String> {
    let prior = "--http2-prior-knowledge";
    let (request, cleartext, rest) =
        options(arguments, &["-d", "--protocol"], &["-v", prior], prior)?;
    let [url] = rest else { return Err(format!("one URL, not {rest:?}")) };
    let needs_http2 = arguments.windows(2).any(|pair| pair == ["--protocol", "grpc"]);
    if url.starts_with("http://") && needs_http2 && !cleartext {
        return Err(format!("gRPC without TLS needs {prior}"));
    }
    let call = url.splitn(4, '/').nth(3).ok_or_else(|| format!("no method in {url}"))?;
    decode(Json::Canonical, call, request).map(drop)
}

/// The request (`-d`), whether `wanted` is given, and what follows the options.
fn options<'a>(
    arguments: &'a [String],
    with_value: &[&str],
    alone: &[&str],
    wanted: &str,
) -> Result<(&'a str, bool, &'a [String]), String> {
    let (mut request, mut given, mut rest) = ("{}", false, arguments);
    while let Some((option, more)) = rest.split_first().filter(|(first, _)| first.starts_with('-'))
    {
        rest = more;
        given |= option == wanted;
        if with_value.contains(&option.as_str()) {
            let (value, more) =
                rest.split_first().ok_or_else(|| format!("{option} needs a value"))?;
            rest = more;
            if option == "-d" {
                request = value;
            }
        } else if !alone.contains(&option.as_str()) {
            return Err(format!("the option {option} is not known to this test"));
        }
    }
    Ok((request, given, rest))
}

/// The files in the arguments exist.
fn files(arguments: &[String]) -> Result<(), String> {
    let missing = |file: &&String| {
        (file.ends_with(".js") || file.ends_with(".json")) && !Path::new(ROOT).join(file).is_file()
    };
    match arguments.iter().find(missing) {
        Some(file) => Err(format!("no file {file}")),
        None => Ok(()),
    }
}
