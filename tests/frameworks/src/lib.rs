//! The guide's chapter on async frameworks, whose examples are tests here.

#[cfg(doctest)]
#[doc = include_str!("../../../src/guide/async_frameworks.md")]
struct Chapter;
