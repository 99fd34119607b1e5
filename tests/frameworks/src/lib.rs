//! The doc tests of the guide's chapter on async frameworks.

#[cfg(doctest)]
#[doc = include_str!("../../../src/guide/async_frameworks.md")]
struct Chapter;
