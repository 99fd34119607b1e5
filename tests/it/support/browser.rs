//! A headless Chromium, driven by chromedriver.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use fantoccini::elements::Element;
use fantoccini::error::NewSessionError;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::await_line;

/// Chromium has no sandbox as root, /dev/shm is small in a container, and the tests make no
/// requests to the internet.
const FLAGS: &[&str] = &[
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
];

/// The limit of each command. chromedriver itself waits 60 s for Chromium to start.
const LIMIT: Duration = Duration::from_secs(90);

/// Ends the browser when it is dropped.
pub(crate) struct Browser {
    runtime: Runtime,
    client: Client,
    driver: Driver,
}

/// chromedriver and the processes that it started, in one process group.
struct Driver {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl Browser {
    pub(crate) fn start() -> Browser {
        Browser::with(json!({}))
    }

    /// With a screen of this many pixels.
    pub(crate) fn phone(width: u32, height: u32) -> Browser {
        let screen = json!({ "width": width, "height": height, "pixelRatio": 2.0 });
        Browser::with(json!({ "mobileEmulation": { "deviceMetrics": screen } }))
    }

    fn with(options: Value) -> Browser {
        // On a busy machine a start of Chromium can fail, so it is tried twice.
        Browser::try_with(options.clone()).or_else(|_| Browser::try_with(options)).unwrap()
    }

    fn try_with(mut options: Value) -> Result<Browser, NewSessionError> {
        let driver = Driver::start();
        let profile = format!("--user-data-dir={}", driver.folder.path().join("profile").display());
        options["args"] = FLAGS.iter().copied().chain([profile.as_str()]).collect();
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities([("goog:chromeOptions".to_owned(), options)].into_iter().collect());
        let runtime = Runtime::new().unwrap();
        let url = format!("http://127.0.0.1:{}", driver.port);
        let connect = async { tokio::time::timeout(LIMIT, builder.connect(&url)).await };
        let client = runtime.block_on(connect).expect("Chromium starts within 90 s")?;
        Ok(Browser { runtime, client, driver })
    }

    /// Runs one command of WebDriver.
    fn block_on<T>(&self, command: impl Future<Output = T>) -> T {
        let limited = async { tokio::time::timeout(LIMIT, command).await };
        self.runtime.block_on(limited).expect("chromedriver answers within 90 s")
    }

    /// Returns the process group of all its processes.
    pub(crate) fn group(&self) -> u32 {
        self.driver.child.id()
    }

    pub(crate) fn open(&self, url: &str) {
        self.block_on(self.client.goto(url)).unwrap();
    }

    /// Returns the HTML of the page, or `None` while the page is loading.
    pub(crate) fn source(&self) -> Option<String> {
        self.block_on(self.client.source()).ok()
    }

    /// Returns the visible part of the page as a PNG.
    pub(crate) fn screenshot(&self) -> Vec<u8> {
        self.block_on(self.client.screenshot()).unwrap()
    }

    /// Returns the visible text of an element.
    pub(crate) fn text(&self, css: &str) -> String {
        self.block_on(self.find(css).text()).unwrap()
    }

    /// Returns the value of a field.
    pub(crate) fn value(&self, css: &str) -> String {
        self.block_on(self.find(css).prop("value")).unwrap().unwrap()
    }

    pub(crate) fn type_into(&self, css: &str, text: &str) {
        self.block_on(self.find(css).send_keys(text)).unwrap();
    }

    pub(crate) fn click(&self, css: &str) {
        self.block_on(self.find(css).click()).unwrap();
    }

    pub(crate) fn count(&self, css: &str) -> usize {
        self.block_on(self.client.find_all(Locator::Css(css))).unwrap().len()
    }

    pub(crate) fn evaluate(&self, expression: &str) -> Value {
        self.block_on(self.client.execute(&format!("return {expression}"), Vec::new())).unwrap()
    }

    /// Waits for an element (30 s, fantoccini's default).
    fn find(&self, css: &str) -> Element {
        self.block_on(self.client.wait().for_element(Locator::Css(css))).unwrap()
    }
}

impl Driver {
    fn start() -> Driver {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("chromedriver");
        // Their temporary files are removed with the folder.
        command.arg("--port=0").env("TMPDIR", folder.path()).process_group(0);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("chromedriver starts");
        let port =
            await_line("chromedriver prints its port", child.stdout.take().unwrap(), |line| {
                line.split_once("started successfully on port ")?
                    .1
                    .trim_end_matches('.')
                    .parse()
                    .ok()
            });
        Driver { child, port, folder }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let group = self.child.id();
        let _ = Command::new("kill").args(["-s", "KILL", "--", &format!("-{group}")]).status();
        let _ = self.child.wait();
        // A process that is ending can still write to the folder.
        let deadline = Instant::now() + Duration::from_secs(5);
        while is_there(group) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Returns whether a process of this group runs. Zombies do not count.
pub(crate) fn is_there(group: u32) -> bool {
    let output = Command::new("ps").args(["-A", "-o", "pgid=,stat="]).output().unwrap();
    let runs = |line: &str| {
        line.trim().split_once(' ').is_some_and(|(pgid, state)| {
            pgid == group.to_string() && !state.trim_start().starts_with('Z')
        })
    };
    String::from_utf8_lossy(&output.stdout).lines().any(runs)
}
