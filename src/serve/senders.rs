//! Whose requests are answered.

use super::refusal::Refusal;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HOST, ORIGIN};
use std::net::{IpAddr, SocketAddr};

pub struct Senders {
    /// A hash of the key that requests must bear.
    key: Option<blake3::Hash>,
    /// Whether only this machine reaches the server.
    is_local: bool,
}

impl Senders {
    /// `key`: what requests must bear, if anything; `is_local`: whether only this machine reaches the server.
    pub fn new(key: Option<&str>, is_local: bool) -> Self {
        Self { key: key.map(|key| blake3::hash(key.as_bytes())), is_local }
    }

    /// # Errors
    /// A request without the key, or from a web page: whoever visits one has not asked for it.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if headers.contains_key(ORIGIN) {
            let message = "requests of web pages, which have the header Origin, are not answered";
            return Err(Refusal::new(403, "origin_not_allowed", message));
        }
        let Some(key) = self.key else { return self.check_host(headers) };
        let given = headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        // Hashes are compared in constant time.
        if given.is_some_and(|given| blake3::hash(given) == key) {
            return Ok(());
        }
        let problem = if given.is_some() { "the API key is not the server's" } else { "an API key is needed" };
        let message = format!("{problem}; send it in the header Authorization: Bearer KEY");
        Err(Refusal::new(401, "invalid_api_key", message))
    }

    /// A web page may give its own name the address of this machine, and then ask without `Origin`.
    fn check_host(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(host) = headers.get(HOST).filter(|_| self.is_local) else { return Ok(()) };
        if host.to_str().is_ok_and(is_own) {
            return Ok(());
        }
        let message = "without a key, the server is called localhost or by its address, not by another name";
        Err(Refusal::new(403, "host_not_allowed", message))
    }
}

/// The key in `Bearer KEY`; the first word may have letters of any size (RFC 9110, section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
}

/// Whether a host, perhaps with a port, is an address or `localhost`.
fn is_own(host: &str) -> bool {
    let is_address = |text: &str| text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    host.parse::<SocketAddr>().is_ok() || is_address(host) || is_address(name) || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_own_names() {
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8080", "192.168.0.7:1"]
        {
            assert!(is_own(host), "{host}");
        }
        for host in ["", "example.com", "example.com:8080", "localhost.example.com", "127.0.0.1.example.com:80"] {
            assert!(!is_own(host), "{host}");
        }
    }

    #[test]
    fn a_name_is_checked_only_where_nothing_else_keeps_others_out() {
        let headers = HeaderMap::from_iter([(HOST, "example.com".parse().unwrap())]);
        assert_eq!(Senders::new(None, true).check(&headers).unwrap_err().code, "host_not_allowed");
        Senders::new(None, false).check(&headers).unwrap();
        let mut keyed = headers.clone();
        keyed.insert(AUTHORIZATION, "bearer k".parse().unwrap());
        Senders::new(Some("k"), true).check(&keyed).unwrap();
        assert_eq!(Senders::new(Some("k"), true).check(&headers).unwrap_err().status, 401);
    }
}
