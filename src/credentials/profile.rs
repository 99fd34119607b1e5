//! What we read in the shared configuration files ourselves: keys that the AWS SDK ignores.

use std::path::PathBuf;

/// The variable that names each shared file, and its default in ~/.aws.
const FILES: [(&str, &str); 2] =
    [("AWS_CONFIG_FILE", "config"), ("AWS_SHARED_CREDENTIALS_FILE", "credentials")];

fn path((variable, name): (&str, &str)) -> PathBuf {
    let home = || std::env::home_dir().unwrap_or_default().join(".aws").join(name);
    std::env::var_os(variable).map_or_else(home, Into::into)
}

/// Returns the shared configuration files that exist and cannot be read. aws-config treats them as
/// absent.
pub(crate) fn unreadable_files() -> Vec<String> {
    let unreadable = FILES.into_iter().filter_map(|file| {
        let path = path(file);
        let error = std::fs::read_to_string(&path).err()?;
        let exists = error.kind() != std::io::ErrorKind::NotFound;
        exists.then(|| format!("cannot read {}: {error}", path.display()))
    });
    unreadable.collect()
}

/// Returns the value of a variable, without white space around it. An empty one counts as not set.
pub(super) fn variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok()?.trim().to_owned();
    (!value.is_empty()).then_some(value)
}

/// Returns the name of the profile: `setting`, AWS_PROFILE, or `default`.
pub(crate) fn profile_name(setting: Option<&str>) -> String {
    let set = setting.map(|name| name.trim().to_owned()).or_else(|| variable("AWS_PROFILE"));
    set.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".into())
}

/// Returns the value of `key` in a profile of the shared configuration files.
pub(super) fn profile_value(profile: &str, key: &str) -> Option<String> {
    let texts = FILES.into_iter().filter_map(|file| std::fs::read_to_string(path(file)).ok());
    texts.into_iter().find_map(|text| value_in(&text, profile, key))
}

fn value_in(text: &str, profile: &str, key: &str) -> Option<String> {
    let mut is_in_profile = false;
    let mut found = None;
    for line in text.lines() {
        if let Some(header) = line.trim().strip_prefix('[') {
            let name = header.split(']').next().unwrap_or_default().trim();
            let name = name.strip_prefix("profile ").unwrap_or(name);
            is_in_profile = name.trim().trim_matches(['"', '\'']) == profile;
        } else if let (true, Some((name, value))) = (is_in_profile, line.split_once('='))
            // An indented line belongs to the key above it.
            && !line.starts_with(char::is_whitespace)
            && name.trim().eq_ignore_ascii_case(key)
        {
            found = Some(value.trim().to_owned());
        }
    }
    found.filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_in_its_profile_only() {
        let text = "[default]\nregion = x\n[profile  admin ]\nmfa_serial = arn:a \n s3 =\n  \
                    ca_bundle=nested\n[plain]\nMFA_SERIAL=arn:b\nca_bundle=\n";
        let cases = [
            ("default", "mfa_serial", None),
            ("admin", "mfa_serial", Some("arn:a")),
            ("admin", "ca_bundle", None),
            ("plain", "mfa_serial", Some("arn:b")),
            ("plain", "ca_bundle", None),
            ("absent", "mfa_serial", None),
        ];
        for (profile, key, expected) in cases {
            assert_eq!(value_in(text, profile, key).as_deref(), expected, "{profile} {key}");
        }
    }
}
