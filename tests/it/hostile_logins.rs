//! Logins that must be refused: with a changed token, with a token for another purpose, and with
//! random bytes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::SystemTime;

use diesel::prelude::*;
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::{Credentials, Endpoint, presign};
use fastrand::Rng;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode, percent_encode};

use crate::support::{key_pair, minutes, start};

const LOGINS: u64 = 10_000;
const THREADS: u64 = 4;

/// Another user that logs in with a token.
const ANOTHER: &str = "another";
/// Users for which the token of `app` is not valid.
const OTHERS: &[&str] = &[ANOTHER, "App", "rdsadmin", LocalRds::USER_WITHOUT_GRANT, "unknown_user"];

struct Login {
    user: &'static str,
    /// Any bytes except NUL.
    password: Vec<u8>,
}

#[test]
fn all_of_10_000_hostile_logins_are_refused() {
    let rds = start(LocalRds::builder().iam_user(ANOTHER));
    let session = Credentials::new(
        "ASIASESSION",
        "local-rds-secret-session",
        Some("SES/SION+".into()),
        None,
        "test",
    );
    rds.add_key_pair(session.clone());
    let key_pairs = [rds.credentials().clone(), session];
    let seed = fastrand::u64(..);
    eprintln!("seed: {seed}");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (rds, key_pairs) = (&rds, &key_pairs);
            let mut rng = Rng::with_seed(seed ^ thread);
            let log_in = move |_| is_refused(rds, &hostile(rds, key_pairs, &mut rng));
            scope.spawn(move || (0..LOGINS / THREADS).for_each(log_in));
        }
    });
    let shares = shares(&rds);
    log::debug!("hostile logins refused by LocalRds (of {LOGINS}): {shares:?}");
    assert_eq!(shares.len(), REASONS, "{shares:?}");
    for key_pair in &key_pairs {
        let password = sign(&rds.endpoint(), LocalRds::USER, key_pair, SystemTime::now());
        log_in(&rds, &Login { user: LocalRds::USER, password }).unwrap();
    }
}

/// The number of reasons for a refusal, without an expired key pair and `refuse_next`.
const REASONS: usize = 14;

/// Returns how many logins were refused for each reason. (Some logins do not reach LocalRds:
/// PostgreSQL sends only those of users with `rds_iam`, and LDAP passwords are Unicode.)
fn shares(rds: &LocalRds) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for attempt in rds.attempts() {
        let refusal = format!("{:?}", attempt.verdict.expect_err("admitted"));
        *shares.entry(refusal.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    shares
}

/// Checks that the server refused the login. Another error would prove nothing.
fn is_refused(rds: &LocalRds, login: &Login) {
    let expected = match login.password.len() {
        // From libpq.
        0 => "no password supplied",
        1..=LONGEST => "authentication failed for user",
        // The server closes the connection. The text depends on the TLS library.
        _ => "",
    };
    let error = log_in(rds, login).err().expect("admitted").to_string();
    assert!(error.contains(expected), "{} bytes as {}: {error}", login.password.len(), login.user);
}

/// The longest password that PostgreSQL accepts.
const LONGEST: usize = 65_530;

/// Logs in with a URI, in which a password can contain any bytes.
fn log_in(rds: &LocalRds, Login { user, password }: &Login) -> ConnectionResult<PgConnection> {
    let (port, root) = (rds.port(), rds.ca_file().to_str().unwrap());
    let [password, root] =
        [password, root.as_bytes()].map(|bytes| percent_encode(bytes, NON_ALPHANUMERIC));
    PgConnection::establish(&format!(
        "postgres://{user}:{password}@localhost:{port}/app\
         ?sslmode=verify-full&sslrootcert={root}&gssencmode=disable"
    ))
}

fn hostile(rds: &LocalRds, key_pairs: &[Credentials], rng: &mut Rng) -> Login {
    let (user, endpoint, now) = (LocalRds::USER, rds.endpoint(), SystemTime::now());
    let key_pair = &key_pairs[rng.usize(..key_pairs.len())];
    let token = sign(&endpoint, user, key_pair, now);
    match rng.u8(..10) {
        0 => Login { user, password: random_bytes(rng) },
        1 => Login { user: OTHERS[rng.usize(..OTHERS.len())], password: token },
        2 => Login { user, password: signed_for_another_purpose(&endpoint, key_pair, now, rng) },
        3 => Login {
            user,
            password: with_the_signature_of(
                &signed_for_another_purpose(&endpoint, key_pair, now, rng),
                token,
            ),
        },
        _ => Login { user, password: changed(&token, rng) },
    }
}

fn sign(endpoint: &Endpoint, user: &str, key_pair: &Credentials, when: SystemTime) -> Vec<u8> {
    presign(endpoint, user, key_pair, when).unwrap().as_str().into()
}

/// Returns a well-formed token for another endpoint, user or time, or of another key pair.
fn signed_for_another_purpose(
    endpoint: &Endpoint,
    pair: &Credentials,
    now: SystemTime,
    rng: &mut Rng,
) -> Vec<u8> {
    let (host, port, region, user) =
        (endpoint.host(), endpoint.port(), endpoint.region(), LocalRds::USER);
    let at =
        |host, port, region| sign(&Endpoint::new(host, port, region).unwrap(), user, pair, now);
    let by = |id: &str, secret: &str, session: Option<&str>| {
        sign(
            endpoint,
            user,
            &Credentials::new(id, secret, session.map(str::to_owned), None, "test"),
            now,
        )
    };
    let (id, secret) = (pair.access_key_id(), pair.secret_access_key());
    match rng.u8(..10) {
        0 => at("db.abc123.us-east-1.rds.amazonaws.com", port, region),
        1 => at("abc123.dsql.us-east-1.on.aws", port, region),
        2 => at(host, port ^ 1, region),
        3 => at(host, port, "us-west-2"),
        4 => sign(endpoint, ANOTHER, pair, now),
        5 => sign(endpoint, user, pair, now - minutes(rng.u64(15..100_000))),
        6 => sign(endpoint, user, pair, now + minutes(rng.u64(6..100_000))),
        7 => sign(endpoint, user, &key_pair(None), now),
        8 => by(id, "local-rds-secret-guessed", pair.session_token()),
        _ => by(id, secret, Some("another")),
    }
}

fn with_the_signature_of(other: &[u8], mut token: Vec<u8>) -> Vec<u8> {
    const LENGTH: usize = 64;
    token.truncate(token.len() - LENGTH);
    token.extend(&other[other.len() - LENGTH..]);
    token
}

fn random_bytes(rng: &mut Rng) -> Vec<u8> {
    let length = match rng.u8(..8) {
        0 => 0,
        1 => LONGEST,
        2 => LONGEST + rng.usize(1..10_000),
        _ => rng.usize(1..2_000),
    };
    let lowest_and_highest = [(1, 255), (b' ', b'~'), (0x80, 0xff)][rng.usize(..3)];
    std::iter::repeat_with(|| rng.u8(lowest_and_highest.0..=lowest_and_highest.1))
        .take(length)
        .collect()
}

/// Returns the token with one change that makes it another request to AWS.
fn changed(token: &[u8], rng: &mut Rng) -> Vec<u8> {
    loop {
        let mut changed = token.to_vec();
        CHANGES[rng.usize(..CHANGES.len())](&mut changed, rng);
        changed.retain(|byte| *byte != 0);
        if request(&changed) != request(token) {
            return changed;
        }
    }
}

/// Returns what SigV4 signs of a token. The order of the parameters and the encoding of a byte are
/// not part of it, so AWS may accept a token in which only these differ. (LocalRds accepts another
/// order and refuses another encoding.)
fn request(token: &[u8]) -> Vec<Vec<u8>> {
    let mut ends = token.splitn(2, |byte| *byte == b'?');
    let (authority, query) = (ends.next().unwrap_or_default(), ends.next().unwrap_or_default());
    let parts = query.split(|byte| *byte == b'&').chain([authority]);
    let mut parts: Vec<Vec<u8>> = parts.map(|part| percent_decode(part).collect()).collect();
    parts.sort();
    parts
}

type Change = fn(&mut Vec<u8>, &mut Rng);

const CHANGES: &[Change] = &[
    // A changed bit, byte or digit.
    |token, rng| *any(token, rng) ^= 1 << rng.u8(..8),
    |token, rng| *any(token, rng) = rng.u8(1..),
    |token, rng| *any_digit(token, rng) = rng.u8(b'0'..=b'9'),
    |token, rng| token.insert(rng.usize(..=token.len()), rng.u8(1..)),
    // A part removed, repeated or appended.
    |token, rng| token.truncate(rng.usize(1..token.len())),
    |token, rng| drop(token.drain(..rng.usize(1..token.len()))),
    |token, rng| drop(token.drain(range(token, rng))),
    |token, rng| token.extend_from_within(range(token, rng)),
    |token, rng| token.extend(std::iter::repeat_n(b" \n\t&/=a"[rng.usize(..7)], rng.usize(1..8))),
    |token, rng| *token = token.repeat(rng.usize(2..=LONGEST / token.len())),
    // Upper case for lower case, and the reverse.
    |token, rng| {
        let range = range(token, rng);
        token[range]
            .iter_mut()
            .for_each(|byte| *byte ^= if byte.is_ascii_alphabetic() { b' ' } else { 0 });
    },
    // A byte percent-encoded (again), and in an overlong form that UTF-8 forbids.
    |token, rng| in_place_of_one(token, rng, |byte| format!("%{byte:02X}")),
    |token, rng| {
        in_place_of_one(token, rng, |byte| {
            format!("%{:02X}%{:02X}", 0xc0 | byte >> 6, 0x80 | byte & 0x3f)
        })
    },
    // A parameter removed or repeated, or 2 values exchanged.
    |token, rng| of_parameters(token, rng, |parameters, i, _| _ = parameters.remove(i)),
    |token, rng| of_parameters(token, rng, |parameters, i, j| parameters.insert(j, parameters[i])),
    |token, rng| {
        of_parameters(token, rng, |parameters, i, j| {
            (parameters[i].1, parameters[j].1) = (parameters[j].1, parameters[i].1);
        });
    },
    |token, rng| {
        let (word, other) = WORDS[rng.usize(..WORDS.len())];
        *token = String::from_utf8_lossy(token).replace(word, other).into();
    },
];

/// What an attacker would replace, and by what.
const WORDS: &[(&str, &str)] = &[
    ("DBUser=app", "DBUser=another"),
    ("us-east-1", "us-west-2"),
    ("rds-db", "dsql"),
    ("connect", "DbConnectAdmin"),
    ("Expires=900", "Expires=604800"),
    ("SHA256", "SHA1"),
    ("=host", "="),
    ("localhost", "LOCALHOST"),
];

fn any<'a>(token: &'a mut [u8], rng: &mut Rng) -> &'a mut u8 {
    let place = rng.usize(..token.len());
    &mut token[place]
}

fn any_digit<'a>(token: &'a mut [u8], rng: &mut Rng) -> &'a mut u8 {
    let mut digits: Vec<&mut u8> = token.iter_mut().filter(|byte| byte.is_ascii_digit()).collect();
    digits.swap_remove(rng.usize(..digits.len()))
}

fn range(token: &[u8], rng: &mut Rng) -> Range<usize> {
    let start = rng.usize(..token.len());
    start..rng.usize(start + 1..=token.len())
}

fn in_place_of_one(token: &mut Vec<u8>, rng: &mut Rng, written: fn(u8) -> String) {
    let place = rng.usize(..token.len());
    let other = written(token[place]);
    token.splice(place..=place, other.into_bytes());
}

/// Applies a change to the parameters, with the positions of 2 of them.
fn of_parameters(
    token: &mut Vec<u8>,
    rng: &mut Rng,
    change: fn(&mut Vec<(&str, &str)>, usize, usize),
) {
    let text = String::from_utf8_lossy(token).into_owned();
    let (authority, query) = text.split_once("/?").unwrap();
    let mut parameters: Vec<(&str, &str)> =
        query.split('&').map(|pair| pair.split_once('=').unwrap()).collect();
    let count = parameters.len();
    change(&mut parameters, rng.usize(..count), rng.usize(..count));
    let parameters: Vec<String> =
        parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
    *token = format!("{authority}/?{}", parameters.join("&")).into_bytes();
}
