//! A headless Chromium, driven through its pipe (Chrome DevTools Protocol: messages of JSON that end with a zero byte).

use std::path::{Path, PathBuf};
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::harness::HANG;

/// Between two looks at the page.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

pub fn program() -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    let mut files = std::env::split_paths(&paths)
        .flat_map(|folder| names.map(|name| folder.join(name)).into_iter());
    files.find(|file| file.is_file())
}

pub struct Page {
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: Value,
    number: u64,
    /// What the console and the security policy have said.
    complaints: Vec<String>,
    _profile: tempfile::TempDir,
    _browser: Child,
}

impl Page {
    pub async fn open(program: &Path, url: &str) -> Self {
        let profile = tempfile::tempdir().unwrap();
        // The protocol is on the descriptors 3 and 4.
        let mut browser = Command::new("sh")
            .arg("-c")
            .arg("exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1")
            .arg("sh")
            .arg(program)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--remote-debugging-pipe", "--hide-scrollbars"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (to, from) = (browser.stdin.take().unwrap(), browser.stdout.take().unwrap());
        let mut page = Self {
            to,
            from: BufReader::new(from),
            session: Value::Null,
            number: 0,
            complaints: Vec::new(),
            _profile: profile,
            _browser: browser,
        };
        let target = page.ask("Target.createTarget", json!({ "url": "about:blank" })).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        page.session = page.ask("Target.attachToTarget", attach).await["sessionId"].clone();
        for domain in ["Runtime.enable", "Log.enable", "Page.enable"] {
            page.ask(domain, json!({})).await;
        }
        page.ask("Page.navigate", json!({ "url": url })).await;
        page
    }

    /// Sends a command, and returns its result.
    async fn ask(&mut self, method: &str, params: Value) -> Value {
        self.number += 1;
        let mut command = json!({ "id": self.number, "method": method, "params": params });
        if !self.session.is_null() {
            command["sessionId"] = self.session.clone();
        }
        self.to.write_all(format!("{command}\0").as_bytes()).await.unwrap();
        tokio::time::timeout(HANG, self.answer()).await.expect("Chromium answers")
    }

    async fn answer(&mut self) -> Value {
        loop {
            let mut message = Vec::new();
            assert!(self.from.read_until(0, &mut message).await.unwrap() > 0, "Chromium has ended");
            message.pop();
            let message: Value = serde_json::from_slice(&message).unwrap();
            match message["method"].as_str() {
                Some("Runtime.exceptionThrown") => {
                    self.complaints.push(message["params"].to_string())
                }
                // The event stream ends every half minute, and the page connects again.
                Some("Log.entryAdded") if message["params"]["entry"]["source"] != "network" => {
                    self.complaints.push(message["params"]["entry"].to_string());
                }
                _ => {}
            }
            if message["id"] == self.number {
                assert!(message["error"].is_null(), "{message}");
                return message["result"].clone();
            }
        }
    }

    /// Runs a script in the page, and returns its value.
    pub async fn run(&mut self, script: &str) -> Value {
        let result =
            self.ask("Runtime.evaluate", json!({ "expression": script, "returnByValue": true }));
        result.await["result"]["value"].clone()
    }

    /// Waits until a condition holds in the page.
    pub async fn until(&mut self, what: &str, condition: &str) {
        let holds = async {
            while self.run(condition).await != true {
                tokio::time::sleep(PAUSE).await;
            }
        };
        if tokio::time::timeout(HANG, holds).await.is_err() {
            let text = "document.body.innerText";
            panic!("{what}: not within {HANG:?}; {}", self.run(text).await);
        }
    }

    pub async fn appear(&mut self, dark: bool, width: u32) {
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.ask("Emulation.setEmulatedMedia", json!({ "features": features })).await;
        let size =
            json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.ask("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Of the whole page, in target/tmp.
    pub async fn screenshot(&mut self, name: &str) {
        let shot = json!({ "format": "png", "captureBeyondViewport": true });
        let shot = self.ask("Page.captureScreenshot", shot).await;
        let image = STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
        std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name), image).unwrap();
    }

    pub fn complaints(&self) -> Vec<String> {
        self.complaints.clone()
    }
}
