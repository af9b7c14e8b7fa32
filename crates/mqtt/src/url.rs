//! The address of a broker as a user writes it, checked once, at the door.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::options::Credentials;

/// How bytes travel to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `mqtt://`: plain TCP, port 1883.
    Mqtt,
    /// `mqtts://`: TLS, port 8883.
    Mqtts,
    /// `ws://`: WebSocket, port 80.
    Ws,
    /// `wss://`: WebSocket over TLS, port 443.
    Wss,
}

impl Scheme {
    /// Whether the connection is encrypted.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Mqtts | Self::Wss)
    }

    /// Whether MQTT is carried in WebSocket frames.
    pub fn is_websocket(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }

    fn parse(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "mqtt" => Some(Self::Mqtt),
            "mqtts" => Some(Self::Mqtts),
            "ws" => Some(Self::Ws),
            "wss" => Some(Self::Wss),
            _ => None,
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Mqtt => 1883,
            Self::Mqtts => 8883,
            Self::Ws => 80,
            Self::Wss => 443,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Mqtts => "mqtts",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }
}

/// A broker's address: `mqtt://[user:password@]host[:port]`, or `mqtts`, `ws`, `wss`.
///
/// `ws` and `wss` take a path, `/mqtt` by default. `Display` and `Debug` leave the password and
/// the user out, so a URL can be logged as it stands.
///
/// ```
/// let url: mqtt::BrokerUrl = "mqtts://ann:secret@broker.example".parse().unwrap();
/// assert_eq!(url.port(), 8883);
/// assert_eq!(url.to_string(), "mqtts://broker.example:8883");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    scheme: Scheme,
    /// A name or an address, IPv6 without brackets.
    host: String,
    port: u16,
    /// Begins with `/`; empty unless the scheme is a WebSocket one.
    path: String,
    credentials: Option<Credentials>,
}

/// Why a text is no [`BrokerUrl`]. The text itself is not repeated: it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// No `scheme://` in front, or one that is not ours.
    #[error("a broker URL begins with mqtt://, mqtts://, ws:// or wss://")]
    Scheme,
    /// The host is missing or holds characters that no host has.
    #[error("the broker URL has no valid host, as in mqtt://broker.example:1883")]
    Host,
    /// The port is not a number from 1 to 65535.
    #[error("the broker URL's port must be a number from 1 to 65535")]
    Port,
    /// A path, query or fragment where there can be none.
    #[error("only ws:// and wss:// URLs have a path, and it holds no space, `?` or `#`")]
    Path,
    /// The part before `@` is not `user` or `user:password`.
    #[error("write the user as user:password@host, with %40 for @, %3A for : and %2F for /")]
    Credentials,
}

impl BrokerUrl {
    /// How bytes travel to the broker.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host name or address, IPv6 without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The path of the WebSocket endpoint; empty for `mqtt` and `mqtts`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The user and password written in the URL, if any.
    pub fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// Whether the broker is on this machine, so that no one else can listen on the way.
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => address.is_loopback(),
            Ok(IpAddr::V6(address)) => {
                address.is_loopback()
                    || address
                        .to_ipv4_mapped()
                        .is_some_and(|mapped| mapped.is_loopback())
            }
            Err(_) => self.host.eq_ignore_ascii_case("localhost"),
        }
    }

    /// `host:port`, with brackets around an IPv6 address.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for BrokerUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let scheme = Scheme::parse(scheme).ok_or(UrlError::Scheme)?;
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let (credentials, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(parse_credentials(user)?), host),
            None => (None, authority),
        };
        let (host, port) = parse_host(host)?;
        Ok(Self {
            scheme,
            host,
            port: port.unwrap_or(scheme.default_port()),
            path: parse_path(scheme, path)?,
            credentials,
        })
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{}://{}{}",
            self.scheme.as_str(),
            self.authority(),
            self.path
        )
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "BrokerUrl({self})")
    }
}

fn parse_credentials(text: &str) -> Result<Credentials, UrlError> {
    let (username, password) = text.split_once(':').unwrap_or((text, ""));
    let username = percent_decode(username)?;
    if username.is_empty() {
        return Err(UrlError::Credentials);
    }
    Ok(Credentials::new(username, percent_decode(password)?))
}

fn percent_decode(text: &str) -> Result<String, UrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next(), rest.next()].map(|digit| {
            digit
                .and_then(|digit| char::from(digit).to_digit(16))
                .and_then(|digit| u8::try_from(digit).ok())
        });
        let [Some(high), Some(low)] = digits else {
            return Err(UrlError::Credentials);
        };
        bytes.push(high << 4 | low);
    }
    let text = String::from_utf8(bytes).map_err(|_| UrlError::Credentials)?;
    if text.contains('\0') {
        return Err(UrlError::Credentials);
    }
    Ok(text)
}

fn parse_host(text: &str) -> Result<(String, Option<u16>), UrlError> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or(UrlError::Host)?;
        host.parse::<Ipv6Addr>().map_err(|_| UrlError::Host)?;
        let port = match port.strip_prefix(':') {
            Some(port) => Some(parse_port(port)?),
            None if port.is_empty() => None,
            None => return Err(UrlError::Host),
        };
        return Ok((host.to_owned(), port));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(parse_port(port)?)),
        None => (text, None),
    };
    if !is_host(host) {
        return Err(UrlError::Host);
    }
    Ok((host.to_owned(), port))
}

/// An IPv4 address or a DNS name; `_` is not allowed in host names but is common in container
/// networks.
fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if host
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return host.parse::<Ipv4Addr>().is_ok();
    }
    host.len() <= 253 && host.strip_suffix('.').unwrap_or(host).split('.').all(label)
}

fn parse_port(text: &str) -> Result<u16, UrlError> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(UrlError::Port);
    }
    match text.parse() {
        Ok(0) | Err(_) => Err(UrlError::Port),
        Ok(port) => Ok(port),
    }
}

fn parse_path(scheme: Scheme, path: &str) -> Result<String, UrlError> {
    if !scheme.is_websocket() {
        return if path.is_empty() || path == "/" {
            Ok(String::new())
        } else {
            Err(UrlError::Path)
        };
    }
    let printable = |byte: u8| byte.is_ascii_graphic() && byte != b'#' && byte != b'?';
    if !path.bytes().all(printable) {
        return Err(UrlError::Path);
    }
    Ok(if path.is_empty() { "/mqtt" } else { path }.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_urls_are_read_as_written() {
        let table = [
            ("mqtt://broker", "mqtt://broker:1883"),
            ("mqtts://broker", "mqtts://broker:8883"),
            ("ws://broker", "ws://broker:80/mqtt"),
            ("wss://broker", "wss://broker:443/mqtt"),
            ("MQTT://broker:1", "mqtt://broker:1"),
            ("mqtt://broker.example./", "mqtt://broker.example.:1883"),
            ("ws://b_1:9001/a/b", "ws://b_1:9001/a/b"),
            ("ws://b:9001/", "ws://b:9001/"),
            ("mqtt://127.0.0.1:1884", "mqtt://127.0.0.1:1884"),
            ("mqtt://[::1]", "mqtt://[::1]:1883"),
            ("mqtts://[fe80::1]:9", "mqtts://[fe80::1]:9"),
            ("mqtt://ann@broker", "mqtt://broker:1883"),
            ("mqtt://ann:p%40ss@broker", "mqtt://broker:1883"),
        ];
        for (text, shown) in table {
            let url: BrokerUrl = text
                .parse()
                .unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(url.to_string(), shown, "{text}");
        }
    }

    #[test]
    fn bad_urls_are_refused_with_the_part_at_fault() {
        use UrlError::{Credentials, Host, Path, Port, Scheme};
        let table = [
            ("", Scheme),
            ("broker", Scheme),
            ("broker:1883", Scheme),
            ("http://broker", Scheme),
            ("mqtt:/broker", Scheme),
            ("mqtt://", Host),
            ("mqtt:///", Host),
            ("mqtt://:1883", Host),
            ("mqtt://a..b", Host),
            ("mqtt://a b", Host),
            ("mqtt://bröker", Host),
            ("mqtt://999.1.1.1", Host),
            ("mqtt://1.2.3", Host),
            ("mqtt://[::1", Host),
            ("mqtt://[x]", Host),
            ("mqtt://[::1]1883", Host),
            ("mqtt://b:", Port),
            ("mqtt://b:0", Port),
            ("mqtt://b:+1", Port),
            ("mqtt://b:65536", Port),
            ("mqtt://b:1:2", Port),
            ("mqtt://b/topic", Path),
            ("ws://b/a b", Path),
            ("ws://b/a?x=1", Path),
            ("ws://b/a#x", Path),
            ("ws://b/a\r\nHost: c", Path),
            ("mqtt://@b", Credentials),
            ("mqtt://:secret@b", Credentials),
            ("mqtt://a:%zz@b", Credentials),
            ("mqtt://a:%4@b", Credentials),
            ("mqtt://a:%ff@b", Credentials),
            ("mqtt://a:%00@b", Credentials),
        ];
        for (text, fault) in table {
            assert_eq!(text.parse::<BrokerUrl>(), Err(fault), "{text:?}");
        }
    }

    #[test]
    fn garbage_never_panics() {
        let mut random = fastrand::Rng::with_seed(1);
        let alphabet: Vec<char> = "mqts:/@[]%.#?0aé\0\u{7f}".chars().collect();
        for _ in 0..20_000 {
            let len = random.usize(..24);
            let tail: String = (0..len)
                .map(|_| alphabet[random.usize(..alphabet.len())])
                .collect();
            let _ = tail.parse::<BrokerUrl>();
            let _ = format!("mqtt://{tail}").parse::<BrokerUrl>();
            let _ = format!("wss://{tail}").parse::<BrokerUrl>();
        }
    }

    #[test]
    fn the_password_is_kept_and_never_shown() {
        let url: BrokerUrl = "mqtt://ann:h%3Ater@b".parse().unwrap();
        let credentials = url.credentials().unwrap();
        assert_eq!(credentials.username(), "ann");
        assert_eq!(credentials.password(), "h:ter");
        for shown in [
            format!("{url} {url:?} {url:#?}"),
            format!("{credentials:?}"),
        ] {
            assert!(!shown.contains("ter"), "{shown}");
        }
        let error = "mqtt://ann:hunter2@".parse::<BrokerUrl>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[test]
    fn loopback_is_recognised() {
        for (host, loopback) in [
            ("localhost", true),
            ("LocalHost", true),
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("[::1]", true),
            ("[::ffff:127.0.0.1]", true),
            ("localhost.example", false),
            ("10.0.0.1", false),
            ("[::2]", false),
        ] {
            let url: BrokerUrl = format!("mqtt://{host}").parse().unwrap();
            assert_eq!(url.is_loopback(), loopback, "{host}");
        }
    }
}
