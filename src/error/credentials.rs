//! What to do when no source has AWS credentials.

use aws_credential_types::provider::error::CredentialsError;

use super::text::{causes, one_line};

/// Returns what to do about what the sources of credentials said.
pub(crate) fn credentials_cure(error: &CredentialsError) -> String {
    let text = causes(error);
    let profile = one_line(&profile(&text));
    let known = CURES.iter().find(|(word, _)| text.contains(word));
    let is_set = |name| std::env::var(name).is_ok_and(|value| !value.trim().is_empty());
    let cure = match known {
        Some((_, cure)) => cure,
        None if !matches!(error, CredentialsError::CredentialsNotLoaded(_)) => {
            "correct that source: the sources after it are not tried"
        }
        None if is_set("AWS_ACCESS_KEY_ID") && !is_set("AWS_SECRET_ACCESS_KEY") => {
            "set AWS_SECRET_ACCESS_KEY too: AWS_ACCESS_KEY_ID is set without it"
        }
        None if profile == "default" => NO_SOURCE,
        None => "check profile \"{profile}\": it, or one that it refers to, has no credentials",
    };
    cure.replace("{profile}", &profile)
}

/// The first match counts.
const CURES: &[(&str, &str)] = &[
    ("feature(s) enabled: sso", "build diesel-rds-iam with its feature sso"),
    (
        "feature(s) enabled: credentials-process",
        "build diesel-rds-iam with its feature credentials-process",
    ),
    (
        "feature(s) enabled: credentials-login",
        "build diesel-rds-iam with its feature credentials-login",
    ),
    (
        "its mfa_serial",
        "run `eval \"$(aws configure export-credentials --profile {profile} --format env)\"`",
    ),
    // The connection is accepted, and the answer does not come back.
    (
        "could not communicate with IMDS: dispatch failure: timeout: deadline has elapsed",
        "give the instance's containers a second hop: aws ec2 modify-instance-metadata-options \
         --instance-id ID --http-put-response-hop-limit 2",
    ),
    // The last source: all others have no credentials.
    ("instance metadata: failed", NO_SOURCE),
    ("cargo feature", "build diesel-rds-iam with the feature that this text names"),
    ("failed to load the cached SSO token", "run `aws sso login --profile {profile}`"),
    ("SSO token has expired", "run `aws sso login --profile {profile}`"),
    ("login/cache", "run `aws login --profile {profile}`"),
    ("reauthenticate", "run `aws login --profile {profile}`"),
    ("sso/cache", "run `aws sso login --profile {profile}`"),
    ("UnauthorizedException", "run `aws sso login --profile {profile}`"),
    (
        "gave credentials that ended",
        "refresh that source (aws sso login, or the role that it uses) and check this machine's \
         clock",
    ),
    (
        "external process exited",
        "run the command of credential_process in profile \"{profile}\" by hand, and correct what \
         it reports",
    ),
    ("no answer within", "check why that source does not answer, or raise credentials_timeout"),
    ("the given provider", "check the provider that the builder got"),
    ("panicked", "check the provider that the builder got"),
    (
        "was not defined",
        "no profile \"{profile}\" in ~/.aws/config: add it, or choose one that `aws configure \
         list-profiles` shows",
    ),
    (
        "could not parse profile",
        "correct ~/.aws/config and ~/.aws/credentials, or the files that AWS_CONFIG_FILE and \
         AWS_SHARED_CREDENTIALS_FILE name",
    ),
    ("not authorized", "allow that action to the identity that asks, in IAM"),
    ("AccessDenied", "allow that action to the identity that asks, in IAM"),
    ("dns error", "check AWS_REGION, and that this network's DNS resolves the name"),
    ("io error", "check that this machine reaches that source, and HTTPS_PROXY"),
];

/// Returns the profile that failed: the one that the text names, because a builder can set another
/// one than AWS_PROFILE.
fn profile(text: &str) -> String {
    let between = |start: &str, end: char| Some(text.split_once(start)?.1.split_once(end)?.0);
    let undefined = between("profile `", '`').filter(|_| text.contains("was not defined"));
    let in_text = undefined.or_else(|| between("profile \"", '"')).map(str::to_owned);
    let variable = || std::env::var("AWS_PROFILE").ok().filter(|name| !name.is_empty());
    in_text.or_else(variable).unwrap_or_else(|| "default".into())
}

const NO_SOURCE: &str = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give \
                         the task or instance a role";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cure_contains_the_profile_of_the_text() {
        let cases = [
            (
                "profile \"dev\": profile `prod` was not defined: not in the files",
                "no profile \"prod\" in ~/.aws/config",
            ),
            (
                "profile \"prod\": the SSO token has expired, SSO token has expired",
                "run `aws sso login --profile prod`",
            ),
        ];
        for (text, expected) in cases {
            let cure = credentials_cure(&CredentialsError::provider_error(text));
            assert!(cure.contains(expected), "{text}: {cure}");
        }
    }
}
