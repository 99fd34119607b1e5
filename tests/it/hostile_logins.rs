//! Logins that are nobody's: with a valid token that was changed, with one that was signed wrongly,
//! and with nonsense.

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

/// Another user that logs in by token.
const ANOTHER: &str = "another";
/// Whom the token of `app` is not for.
const OTHERS: &[&str] = &[ANOTHER, "App", "rdsadmin", LocalRds::USER_WITHOUT_GRANT, "nobody_knows"];

struct Login {
    user: &'static str,
    /// PostgreSQL takes all bytes but NUL.
    password: Vec<u8>,
}

#[test]
fn of_10_000_hostile_logins_none_is_let_in() {
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
    eprintln!("the seed is {seed}");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (rds, key_pairs) = (&rds, &key_pairs);
            let mut rng = Rng::with_seed(seed ^ thread);
            let log_in = move |_| is_refused(rds, &hostile(rds, key_pairs, &mut rng));
            scope.spawn(move || (0..LOGINS / THREADS).for_each(log_in));
        }
    });
    let shares = shares(&rds);
    log::debug!("of {LOGINS} hostile logins, the stand-in refused these: {shares:?}");
    assert_eq!(shares.len(), REASONS, "{shares:?}");
    for key_pair in &key_pairs {
        let password = sign(&rds.endpoint(), LocalRds::USER, key_pair, SystemTime::now());
        log_in(&rds, &Login { user: LocalRds::USER, password }).unwrap();
    }
}

/// All that a client can be refused for, but that its key pair has ended.
const REASONS: usize = 14;

/// How many logins were refused for each reason. (Of some the stand-in never hears: PostgreSQL asks
/// it about users that log in by token, and LDAP takes passwords in Unicode.)
fn shares(rds: &LocalRds) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for attempt in rds.attempts() {
        let refusal = format!("{:?}", attempt.verdict.expect_err("let in"));
        *shares.entry(refusal.split('(').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    shares
}

/// By the server's word: a login that does not come so far says nothing.
fn is_refused(rds: &LocalRds, login: &Login) {
    let word = match login.password.len() {
        // libpq's own.
        0 => "no password supplied",
        1..=LONGEST => "authentication failed for user",
        // It hangs up, which libpq tells in words of the TLS library.
        _ => "",
    };
    let error = log_in(rds, login).err().expect("let in").to_string();
    assert!(error.contains(word), "{} bytes as {}: {error}", login.password.len(), login.user);
}

/// The longest password that PostgreSQL reads.
const LONGEST: usize = 65_530;

/// By a URI, in which a password can be of any bytes.
fn log_in(rds: &LocalRds, Login { user, password }: &Login) -> ConnectionResult<PgConnection> {
    let (port, root) = (rds.port(), rds.ca_file().to_str().unwrap());
    let [password, root] =
        [password, root.as_bytes()].map(|bytes| percent_encode(bytes, NON_ALPHANUMERIC));
    PgConnection::establish(&format!(
        "postgres://{user}:{password}@localhost:{port}/app?sslmode=verify-full&sslrootcert={root}&gssencmode=disable"
    ))
}

fn hostile(rds: &LocalRds, key_pairs: &[Credentials], rng: &mut Rng) -> Login {
    let (user, endpoint, now) = (LocalRds::USER, rds.endpoint(), SystemTime::now());
    let key_pair = &key_pairs[rng.usize(..key_pairs.len())];
    let token = sign(&endpoint, user, key_pair, now);
    match rng.u8(..10) {
        0 => Login { user, password: nonsense(rng) },
        1 => Login { user: OTHERS[rng.usize(..OTHERS.len())], password: token },
        2 => Login { user, password: signed_wrongly(&endpoint, key_pair, now, rng) },
        3 => Login {
            user,
            password: with_the_signature_of(&signed_wrongly(&endpoint, key_pair, now, rng), token),
        },
        _ => Login { user, password: changed(&token, rng) },
    }
}

fn sign(endpoint: &Endpoint, user: &str, key_pair: &Credentials, when: SystemTime) -> Vec<u8> {
    presign(endpoint, user, key_pair, when).unwrap().as_str().into()
}

/// Well formed, and for another endpoint, another user or another time, or by somebody else.
fn signed_wrongly(
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

fn nonsense(rng: &mut Rng) -> Vec<u8> {
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

/// Changed in one way, and another request to AWS than before.
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

/// What SigV4 signs of a token: the order of the parameters and the way in which a byte is written
/// make no difference, so AWS may well take what differs in these alone. (The stand-in takes the
/// one, and refuses the other.)
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
    // A bit, a byte, a digit, as in a date.
    |token, rng| *any(token, rng) ^= 1 << rng.u8(..8),
    |token, rng| *any(token, rng) = rng.u8(1..),
    |token, rng| *any_digit(token, rng) = rng.u8(b'0'..=b'9'),
    |token, rng| token.insert(rng.usize(..=token.len()), rng.u8(1..)),
    // The end, the beginning, what is between.
    |token, rng| token.truncate(rng.usize(1..token.len())),
    |token, rng| drop(token.drain(..rng.usize(1..token.len()))),
    |token, rng| drop(token.drain(range(token, rng))),
    |token, rng| token.extend_from_within(range(token, rng)),
    |token, rng| token.extend(std::iter::repeat_n(b" \n\t&/=a"[rng.usize(..7)], rng.usize(1..8))),
    |token, rng| *token = token.repeat(rng.usize(2..=LONGEST / token.len())),
    // Capital letters for small ones, and the reverse.
    |token, rng| {
        let range = range(token, rng);
        token[range]
            .iter_mut()
            .for_each(|byte| *byte ^= if byte.is_ascii_alphabetic() { b' ' } else { 0 });
    },
    // Encoded, once more where it was; and in the way that UTF-8 forbids.
    |token, rng| in_place_of_one(token, rng, |byte| format!("%{byte:02X}")),
    |token, rng| {
        in_place_of_one(token, rng, |byte| {
            format!("%{:02X}%{:02X}", 0xc0 | byte >> 6, 0x80 | byte & 0x3f)
        })
    },
    // Parameters: one less, one twice, two that change their values.
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

/// What a thief would write, in the place of what.
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

/// With the places of two of them.
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
