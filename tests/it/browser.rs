//! The example web in a browser, as a person uses it.

use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU32, Ordering};

use diesel_rds_iam::local::LocalRds;

use crate::support::browser::{Browser, is_there};
use crate::support::web::{Web, number};
use crate::support::{eventually, start};

#[test]
fn a_person_adds_an_entry_and_finishes_it() {
    let rds = start(LocalRds::builder());
    let (web, browser) = (Web::on(&rds), Browser::start());
    browser.open(&web.url);
    assert_eq!(browser.text("label[for=text]"), "What is there to do?");
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
fn a_person_is_told_what_is_wrong_with_a_text() {
    let rds = start(LocalRds::builder());
    let (web, browser) = (Web::on(&rds), Browser::start());
    browser.open(&web.url);
    // The browser itself says no to nothing, and takes no more than 200 characters.
    browser.click(".add button");
    assert_eq!(browser.evaluate("location.pathname"), "/");
    browser.type_into("#text", &"x".repeat(201));
    assert_eq!(browser.value("#text"), "x".repeat(200));
    browser.open(&web.url);
    browser.type_into("#text", "   ");
    browser.click(".add button");
    assert_eq!(browser.text("#complaint"), "Say what there is to do.");
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
    // The page loads itself anew.
    eventually("the page shows new logins", || shows("logins") > logins && shows(closed) > Some(0));
    eventually("the page shows 8 idle connections", || shows("idle") == Some(8));
}

#[test]
fn the_pages_fit_a_phone() {
    let rds = start(LocalRds::builder());
    let (web, browser) = (Web::on(&rds), Browser::phone(360, 740));
    let longest = "x".repeat(200);
    for path in ["/", "/status", "/nothing"] {
        browser.open(&format!("{}{path}", web.url));
        assert_eq!(
            browser.evaluate("[innerWidth, document.documentElement.scrollWidth]"),
            serde_json::json!([360, 360])
        );
    }
    browser.open(&web.url);
    browser.type_into("#text", &longest);
    browser.click(".add button");
    assert_eq!(browser.text(".entries span"), longest);
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth"), 360);
    // Its word was broken into letters.
    let height =
        |css: &str| browser.evaluate(&format!("document.querySelector('{css}').offsetHeight"));
    assert_eq!(height(".entries button"), height(".add button"));
}

#[test]
fn nothing_is_left_of_a_browser_when_a_test_fails() {
    static GROUP: AtomicU32 = AtomicU32::new(0);
    let test = || {
        let browser = Browser::start();
        assert!(is_there(browser.group()));
        GROUP.store(browser.group(), Ordering::SeqCst);
        panic!("as a test that fails");
    };
    assert!(catch_unwind(test).is_err());
    assert!(!is_there(GROUP.load(Ordering::SeqCst)));
}
