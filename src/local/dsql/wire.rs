//! The messages of PostgreSQL's protocol (PostgreSQL, "Message Formats").

use bytes::BytesMut;

/// The codes of the packets that can precede a login.
pub(super) const SSL_REQUEST: u32 = 80_877_103;
pub(super) const GSSENC_REQUEST: u32 = 80_877_104;
pub(super) const CANCEL_REQUEST: u32 = 80_877_102;

/// The longest packet before the login that PostgreSQL accepts, in bytes.
const LONGEST_STARTUP: usize = 10_000;

/// Takes a whole message with its header, if the buffer contains it.
pub(super) fn take_message(buffer: &mut BytesMut) -> Option<BytesMut> {
    let length = length_at(buffer, 1)?.max(4) + 1;
    (buffer.len() >= length).then(|| buffer.split_to(length))
}

/// Takes a whole packet of the start of a connection, which has no type. `Err` if it is too long.
pub(super) fn take_startup(buffer: &mut BytesMut) -> Result<Option<BytesMut>, ()> {
    let Some(length) = length_at(buffer, 0) else { return Ok(None) };
    if !(8..=LONGEST_STARTUP).contains(&length) {
        return Err(());
    }
    Ok((buffer.len() >= length).then(|| buffer.split_to(length)))
}

/// Returns the code of a packet of the start of a connection.
pub(super) fn startup_code(packet: &[u8]) -> u32 {
    length_at(packet, 4).and_then(|code| u32::try_from(code).ok()).unwrap_or_default()
}

fn length_at(bytes: &[u8], at: usize) -> Option<usize> {
    let length = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_be_bytes(length)).ok()
}

/// Appends a message.
pub(super) fn push(to: &mut Vec<u8>, kind: u8, body: &[&[u8]]) {
    let length = 4 + body.iter().map(|part| part.len()).sum::<usize>();
    to.push(kind);
    to.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    body.iter().for_each(|part| to.extend(*part));
}

/// Splits at the first zero byte, which ends a string.
pub(super) fn string(body: &[u8]) -> (&[u8], &[u8]) {
    match body.iter().position(|byte| *byte == 0) {
        Some(end) => (&body[..end], &body[end + 1..]),
        None => (body, &[]),
    }
}

/// Appends an ErrorResponse.
pub(super) fn push_error(to: &mut Vec<u8>, severity: &str, code: &str, message: &str) {
    let fields = format!("S{severity}\0V{severity}\0C{code}\0M{message}\0\0");
    push(to, b'E', &[fields.as_bytes()]);
}

/// Returns a field of an ErrorResponse or a NoticeResponse.
pub(super) fn field(mut body: &[u8], kind: u8) -> String {
    while let Some((found, rest)) = body.split_first() {
        let (value, rest) = string(rest);
        if *found == kind {
            return String::from_utf8_lossy(value).into_owned();
        }
        body = rest;
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_when_they_are_whole() {
        let mut message = Vec::new();
        push(&mut message, b'Q', &[b"SELECT 1", b"\0"]);
        for end in 0..message.len() {
            assert_eq!(take_message(&mut BytesMut::from(&message[..end])), None, "{end} bytes");
        }
        let mut buffer = BytesMut::from(&message[..]);
        buffer.extend_from_slice(b"Z");
        assert_eq!(take_message(&mut buffer).unwrap(), message);
        assert_eq!(buffer, b"Z"[..]);
    }

    #[test]
    fn the_length_of_a_startup_packet_is_limited() {
        let packet = |length: u32| BytesMut::from(&length.to_be_bytes()[..]);
        assert_eq!(take_startup(&mut packet(8)), Ok(None));
        assert_eq!(take_startup(&mut packet(10_000)), Ok(None));
        assert_eq!(take_startup(&mut packet(10_001)), Err(()));
        assert_eq!(take_startup(&mut packet(7)), Err(()));
    }

    #[test]
    fn fields_of_an_error() {
        let mut error = Vec::new();
        push_error(&mut error, "ERROR", "0A000", "no");
        assert_eq!(
            (field(&error[5..], b'C'), field(&error[5..], b'M')),
            ("0A000".into(), "no".into())
        );
        assert_eq!(field(&error[5..], b'X'), "");
    }
}
