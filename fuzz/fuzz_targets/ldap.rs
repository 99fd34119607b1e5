//! Messages that PostgreSQL could send to the stand-in: it admits only a user with a token that was
//! signed for this user.
#![no_main]

use std::cell::RefCell;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use diesel_rds_iam::fuzzing::{answers, is_admitted};
use diesel_rds_iam::{AuthToken, Credentials, Endpoint, presign};
use ldap3_proto::LdapCodec;
use ldap3_proto::proto::{LdapOp, LdapResultCode};
use libfuzzer_sys::fuzz_target;
use tokio_util::codec::Decoder;

const USER: &str = "app";

/// A stand-in whose clock stands still, so that the tokens of the corpus stay valid.
struct StandIn {
    endpoint: Endpoint,
    key_pair: Credentials,
    now: SystemTime,
    token: AuthToken,
}

static STAND_IN: LazyLock<StandIn> = LazyLock::new(|| {
    let endpoint = Endpoint::new("localhost", 5432, "us-east-1").expect("an endpoint");
    let key_pair = Credentials::new("AKIDEXAMPLE", "secret", None, None, "fuzz");
    let now = UNIX_EPOCH + Duration::from_secs(1_478_540_373);
    let token = presign(&endpoint, USER, &key_pair, now).expect("a token");
    StandIn { endpoint, key_pair, now, token }
});

/// Parameters in another order are the same request.
fn sorted(token: &str) -> Vec<&str> {
    let mut parts: Vec<&str> = token.split(['?', '&']).collect();
    parts.sort_unstable();
    parts
}

fn successes(answers: &[u8]) -> usize {
    let (mut codec, mut answers) = (LdapCodec::default(), BytesMut::from(answers));
    let messages =
        std::iter::from_fn(|| codec.decode(&mut answers).expect("the listener speaks LDAP"));
    let is_success = |op: &LdapOp| match op {
        LdapOp::BindResponse(bind) => bind.res.code == LdapResultCode::Success,
        other => panic!("not an answer to a bind: {other:?}"),
    };
    messages.filter(|message| is_success(&message.op)).count()
}

fuzz_target!(|input: &[u8]| {
    let StandIn { endpoint, key_pair, now, token } = &*STAND_IN;
    let admitted = RefCell::new(0);
    let answers = answers(input, |user, password| {
        let admits = is_admitted(password, user, endpoint, key_pair, *now);
        if admits {
            assert!(user == USER && sorted(password) == sorted(token.as_str()));
            *admitted.borrow_mut() += 1;
        }
        admits
    });
    assert_eq!(successes(&answers), admitted.into_inner());
});
