//! libpq's PG* environment variables.

use super::libpq;

/// A PG* variable whose value ends in white space, as secrets from a file often do.
pub(super) struct UntrimmedVariable {
    pub(super) keyword: String,
    pub(super) name: String,
    pub(super) value: String,
}

/// Returns those that are set.
pub(super) fn untrimmed_variables() -> Vec<UntrimmedVariable> {
    let known = libpq::keywords().into_iter().filter(|(_, setting)| !setting.secret);
    let set = known.filter_map(|(keyword, setting)| {
        let name = setting.variable?;
        Some(UntrimmedVariable { keyword, value: std::env::var(&name).ok()?, name })
    });
    set.filter(|variable| variable.value.trim_end() != variable.value).collect()
}
