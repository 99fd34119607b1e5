//! Small servers in the place of STS, SSO, and the metadata services of containers and instances.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use aws_smithy_types::date_time::{DateTime, Format};
use diesel_rds_iam::Credentials;

pub(crate) struct Request {
    /// Method and target, as `GET /path`.
    pub(crate) line: String,
    /// In their order, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn read(stream: &mut impl BufRead) -> io::Result<Request> {
        let mut first = String::new();
        stream.read_line(&mut first)?;
        let line = first.rsplit_once(' ').ok_or(io::ErrorKind::UnexpectedEof)?.0.to_owned();
        let mut headers = Vec::new();
        loop {
            let mut header = String::new();
            stream.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut request = Request { line, headers, body: String::new() };
        let length =
            request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        stream.take(length).read_to_string(&mut request.body)?;
        Ok(request)
    }
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) headers: Vec<(&'static str, String)>,
}

/// Closes the connection without an answer.
pub(crate) fn hang_up() -> Reply {
    reply(0, "")
}

pub(crate) fn reply(status: u16, body: impl Into<String>) -> Reply {
    Reply { status, body: body.into(), headers: Vec::new() }
}

pub(crate) type Play = Box<dyn Fn(&Request) -> Reply + Send + Sync>;

/// An HTTP server that answers by a closure. Its threads end with the process.
pub(crate) struct Cloud {
    address: SocketAddr,
    calls: Arc<AtomicUsize>,
    play: Arc<Mutex<Arc<Play>>>,
}

impl Cloud {
    pub(crate) fn start(play: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Cloud {
        Self::start_at("127.0.0.1:0", play)
    }

    pub(crate) fn start_at(
        address: &str,
        play: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Cloud {
        let (listener, cloud) = Self::listen(address, play);
        let (calls, play) = (cloud.calls.clone(), cloud.play.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (calls, play) = (calls.clone(), play.clone());
                thread::spawn(move || serve(stream?, &calls, &play));
            }
        });
        cloud
    }

    fn listen(
        address: &str,
        play: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> (TcpListener, Cloud) {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let play: Arc<Play> = Arc::new(Box::new(play));
        (listener, Cloud { address, calls: Arc::default(), play: Arc::new(Mutex::new(play)) })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the number of requests.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn now_answers(&self, play: impl Fn(&Request) -> Reply + Send + Sync + 'static) {
        *self.play.lock().unwrap() = Arc::new(Box::new(play));
    }
}

/// Answers the requests of one connection.
fn serve(stream: TcpStream, calls: &AtomicUsize, play: &Mutex<Arc<Play>>) -> io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    answer_all(&mut input, stream, calls, play)
}

fn answer_all(
    input: &mut impl BufRead,
    mut output: impl Write,
    calls: &AtomicUsize,
    play: &Mutex<Arc<Play>>,
) -> io::Result<()> {
    loop {
        let request = Request::read(input)?;
        calls.fetch_add(1, Ordering::SeqCst);
        let play = play.lock().unwrap().clone();
        let Reply { status, body, headers } = play(&request);
        if status == 0 {
            return Ok(());
        }
        let headers: String =
            headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        write!(
            output,
            "HTTP/1.1 {status} x\r\ncontent-length: {}\r\n{headers}\r\n{body}",
            body.len()
        )?;
    }
}

/// A proxy for HTTPS that answers in the place of each host, with the certificate in these files.
pub(crate) fn https_proxy(
    certificate: &str,
    key: &str,
    play: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> Cloud {
    let mut tls =
        openssl::ssl::SslAcceptor::mozilla_intermediate_v5(openssl::ssl::SslMethod::tls()).unwrap();
    tls.set_private_key_file(key, openssl::ssl::SslFiletype::PEM).unwrap();
    tls.set_certificate_chain_file(certificate).unwrap();
    let tls = tls.build();
    let (listener, cloud) = Cloud::listen("127.0.0.1:0", play);
    let (calls, play) = (cloud.calls.clone(), cloud.play.clone());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream?;
            let connect = Request::read(&mut BufReader::new(stream.try_clone()?))?;
            assert!(connect.line.starts_with("CONNECT "), "{}", connect.line);
            stream.write_all(b"HTTP/1.1 200 tunnel\r\n\r\n")?;
            let stream = tls.accept(stream).map_err(io::Error::other)?;
            let _ = serve_tls(stream, &calls, &play);
        }
        io::Result::Ok(())
    });
    cloud
}

/// Answers one request.
fn serve_tls(
    mut stream: openssl::ssl::SslStream<TcpStream>,
    calls: &AtomicUsize,
    play: &Mutex<Arc<Play>>,
) -> io::Result<()> {
    let request = Request::read(&mut BufReader::new(&mut stream))?;
    calls.fetch_add(1, Ordering::SeqCst);
    let play = play.lock().unwrap().clone();
    let Reply { status, body, .. } = play(&request);
    write!(
        stream,
        "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Returns credentials as a role has them: with a session token and an expiry.
pub(crate) fn role_credentials(name: &str) -> Credentials {
    let end = SystemTime::now() + Duration::from_secs(3600);
    let secret = format!("local-rds-secret-{name}");
    Credentials::new(
        format!("ASIA{name}"),
        secret,
        Some(format!("TOKEN/+=={name}")),
        Some(end),
        "test",
    )
}

fn end_of(credentials: &Credentials) -> DateTime {
    let end = credentials.expiry().unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    DateTime::from_secs(end.as_secs().try_into().unwrap())
}

/// STS' answer to `action`.
pub(crate) fn sts_reply(action: &str, credentials: &Credentials) -> Reply {
    let (id, secret) = (credentials.access_key_id(), credentials.secret_access_key());
    let (token, end) =
        (credentials.session_token().unwrap(), end_of(credentials).fmt(Format::DateTime).unwrap());
    let keys = format!(
        "<Credentials><AccessKeyId>{id}</AccessKeyId>\
         <SecretAccessKey>{secret}</SecretAccessKey>\
         <SessionToken>{token}</SessionToken><Expiration>{end}</Expiration></Credentials>"
    );
    let user = "<AssumedRoleUser><AssumedRoleId>A:b</AssumedRoleId>\
        <Arn>arn:aws:sts::111122223333:assumed-role/r/s</Arn>\
        </AssumedRoleUser>";
    reply(
        200,
        format!(
            "<{action}Response \
             xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <{action}Result>{keys}{user}</{action}Result>\
             <ResponseMetadata><RequestId>1</RequestId></ResponseMetadata>\
             </{action}Response>"
        ),
    )
}

/// STS for AssumeRole and AssumeRoleWithWebIdentity.
pub(crate) fn sts(credentials: Credentials) -> impl Fn(&Request) -> Reply + Send + Sync {
    move |request| {
        let web_identity = request.body.contains("Action=AssumeRoleWithWebIdentity&");
        sts_reply(
            if web_identity { "AssumeRoleWithWebIdentity" } else { "AssumeRole" },
            &credentials,
        )
    }
}

/// The JSON of container and instance metadata services.
pub(crate) fn json(credentials: &Credentials) -> String {
    serde_json::json!({
        "Code": "Success",
        "Type": "AWS-HMAC",
        "LastUpdated": "2026-01-01T00:00:00Z",
        "AccessKeyId": credentials.access_key_id(),
        "SecretAccessKey": credentials.secret_access_key(),
        "Token": credentials.session_token(),
        "Expiration": end_of(credentials).fmt(Format::DateTime).unwrap(),
    })
    .to_string()
}

/// IMDSv2, which answers only requests with its token.
pub(crate) fn imds(credentials: Credentials) -> impl Fn(&Request) -> Reply + Send + Sync {
    const ROLES: &str = "GET /latest/meta-data/iam/security-credentials";
    move |request| {
        let authorized = request.header("x-aws-ec2-metadata-token") == Some("imds-token");
        match request.line.trim_end_matches('/') {
            "PUT /latest/api/token" => {
                let ttl = vec![("x-aws-ec2-metadata-token-ttl-seconds", "21600".to_owned())];
                Reply { headers: ttl, ..reply(200, "imds-token") }
            }
            _ if !authorized => reply(401, ""),
            ROLES => reply(200, "my-role"),
            line if line == format!("{ROLES}/my-role") => reply(200, json(&credentials)),
            _ => reply(404, ""),
        }
    }
}

/// The portal of IAM Identity Center.
pub(crate) fn sso(credentials: Credentials) -> impl Fn(&Request) -> Reply + Send + Sync {
    move |request| {
        if request.header("x-amz-sso_bearer_token") != Some("sso-token") {
            return reply(401, "{}");
        }
        let body = serde_json::json!({ "roleCredentials": {
            "accessKeyId": credentials.access_key_id(),
            "secretAccessKey": credentials.secret_access_key(),
            "sessionToken": credentials.session_token(),
            "expiration": end_of(&credentials).to_millis().unwrap(),
        }});
        reply(200, body.to_string())
    }
}
