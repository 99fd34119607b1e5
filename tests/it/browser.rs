//! The example web in a browser.

use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU32, Ordering};

use diesel_rds_iam::local::LocalRds;

use crate::support::browser::{Browser, is_there};
use crate::support::web::{Web, number, web};
use crate::support::{eventually, start};

#[test]
fn a_user_adds_an_entry_and_finishes_it() {
    let rds = start(LocalRds::builder());
    let (web, browser) = (Web::on(&rds), Browser::start());
    browser.open(&web.url);
    assert_eq!(browser.text("label[for=text]"), "New entry");
    let text = "<script>document.title = 'gotcha'</script> & buy milk";
    browser.type_into("#text", text);
    browser.click(".add button");
    assert_eq!(browser.text(".entries span"), text);
    assert_eq!(browser.evaluate("document.title"), "Things to do");
    assert_eq!((browser.count("script"), browser.count(".entries s")), (0, 0));
    browser.click(".entries button");
    assert_eq!(browser.text(".entries s"), text);
    assert_eq!(browser.count(".entries button"), 0);
}

#[test]
fn an_invalid_text_is_explained() {
    let rds = start(LocalRds::builder());
    let (web, browser) = (Web::on(&rds), Browser::start());
    browser.open(&web.url);
    // The browser refuses an empty text, and accepts at most 200 characters.
    browser.click(".add button");
    assert_eq!(browser.evaluate("location.pathname"), "/");
    browser.type_into("#text", &"x".repeat(201));
    assert_eq!(browser.value("#text"), "x".repeat(200));
    browser.open(&web.url);
    browser.type_into("#text", "   ");
    browser.click(".add button");
    assert_eq!(browser.text("#complaint"), "Enter a text.");
    assert_eq!(browser.value("#text"), "   ");
    assert_eq!(browser.count(".entries li"), 0);
}

#[test]
fn the_status_page_follows_the_pool_through_a_restart() {
    let rds = start(LocalRds::builder());
    let (web, browser) = (Web::on(&rds), Browser::start());
    browser.open(&format!("{}/status", web.url));
    assert_eq!(browser.count("rect.idle"), 8);
    let shows = |name: &str| number(&browser.source()?, name);
    let (logins, closed) = (shows("logins"), "the server has closed it");
    assert_eq!((logins, shows(closed)), (Some(9), Some(0)));
    rds.restart().unwrap();
    eventually("the program answers", || ureq::get(&web.url).call().is_ok());
    // The page reloads itself.
    eventually("the page shows new logins", || shows("logins") > logins && shows(closed) > Some(0));
    eventually("the page shows 8 idle connections", || shows("idle") == Some(8));
}

#[test]
fn the_status_page_shows_an_outage_on_a_phone() {
    let rds = start(LocalRds::builder());
    let (web, browser) = (Web::on(&rds), Browser::phone(360, 740));
    browser.open(&format!("{}/status", web.url));
    assert_eq!(browser.text(".health h2"), "Connected");
    let color = "getComputedStyle(document.querySelector('.health')).backgroundColor";
    let color_before = browser.evaluate(color);
    rds.stop();
    eventually("/health fails", || ureq::get(format!("{}/health", web.url)).call().is_err());
    browser.open(&format!("{}/status", web.url));
    assert_eq!(browser.text(".health h2"), "Outage: no connection");
    let login = format!("Logins as user app at {} fail.", rds.endpoint());
    assert!(browser.text(".health p").starts_with(&login), "{}", browser.text(".health"));
    assert!(browser.text("#last-error").contains("Connection refused"));
    assert_eq!(browser.evaluate("document.querySelector('h1').nextElementSibling.role"), "alert");
    assert_ne!(browser.evaluate(color), color_before);
    assert_eq!(browser.count("rect.idle"), 0);
    assert_fits(&browser);
    rds.restart().unwrap();
    eventually("/health answers", || ureq::get(format!("{}/health", web.url)).call().is_ok());
    browser.open(&format!("{}/status", web.url));
    assert_eq!(browser.text(".health h2"), "Connected");
}

/// Asserts that nothing is cut off on a screen of 360 pixels: neither the page nor a text in it.
fn assert_fits(browser: &Browser) {
    assert_eq!(
        browser.evaluate("[innerWidth, document.documentElement.scrollWidth]"),
        serde_json::json!([360, 360])
    );
    let cut_off = "[...document.querySelectorAll('body *')].filter(it => {
        const box = it.getBoundingClientRect();
        return box.left < 0 || box.right > 360 || it.scrollWidth > it.clientWidth + 1
            && getComputedStyle(it).overflowX == 'hidden';
    }).map(it => it.outerHTML)";
    assert_eq!(browser.evaluate(cut_off), serde_json::json!([]));
}

#[test]
#[ignore = "writes the picture of the status page, examples/web/status.png"]
fn picture_of_the_status_page() {
    let rds = start(LocalRds::builder());
    let mut command = web();
    let web = Web::start(command.envs(rds.environment()).env("MAX_LIFETIME", "10"));
    let browser = Browser::start();
    // Connections of different ages, after some were replaced.
    browser.open(&format!("{}/status", web.url));
    eventually("connections are replaced", || {
        let _ = ureq::get(&web.url).call();
        browser.source().and_then(|page| number(&page, "closed")) > Some(8)
    });
    std::fs::write("examples/web/status.png", browser.screenshot()).unwrap();
}

#[test]
fn the_pages_fit_a_phone() {
    let rds = start(LocalRds::builder());
    let (web, browser) = (Web::on(&rds), Browser::phone(360, 740));
    let longest = "x".repeat(200);
    for path in ["/", "/status", "/nothing"] {
        browser.open(&format!("{}{path}", web.url));
        assert_fits(&browser);
    }
    browser.open(&web.url);
    browser.type_into("#text", &longest);
    browser.click(".add button");
    assert_eq!(browser.text(".entries span"), longest);
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth"), 360);
    // The label of the button does not wrap.
    let height =
        |css: &str| browser.evaluate(&format!("document.querySelector('{css}').offsetHeight"));
    assert_eq!(height(".entries button"), height(".add button"));
}

#[test]
fn a_failing_test_ends_its_browser() {
    static GROUP: AtomicU32 = AtomicU32::new(0);
    let test = || {
        let browser = Browser::start();
        assert!(is_there(browser.group()));
        GROUP.store(browser.group(), Ordering::SeqCst);
        panic!("a failing test");
    };
    assert!(catch_unwind(test).is_err());
    assert!(!is_there(GROUP.load(Ordering::SeqCst)));
}
