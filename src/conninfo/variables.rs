//! libpq's PG* environment variables.

use std::ffi::CString;

use super::libpq;

/// A PG* variable whose value ends in white space, as secrets from a file often do.
#[derive(Debug, PartialEq)]
pub(super) struct UntrimmedVariable {
    pub(super) keyword: String,
    pub(super) name: String,
    pub(super) value: String,
}

impl UntrimmedVariable {
    /// Returns those that are set.
    pub(super) fn all() -> Vec<UntrimmedVariable> {
        let known = libpq::keywords().into_iter();
        let found = known.filter_map(|(keyword, setting)| {
            let name = setting.variable?;
            let value = std::env::var(&name).ok()?;
            let is_untrimmed = value.trim_end().len() < value.len() && !setting.secret;
            is_untrimmed.then_some(UntrimmedVariable { keyword, name, value })
        });
        found.collect()
    }

    pub(super) fn ends_in_a_newline(&self) -> bool {
        self.value.ends_with(['\n', '\r'])
    }

    /// Returns keyword and trimmed value, as libpq takes them.
    pub(super) fn trimmed(&self) -> Option<(CString, CString)> {
        let keyword = CString::new(self.keyword.as_str()).ok()?;
        Some((keyword, CString::new(self.value.trim_end()).ok()?))
    }
}
