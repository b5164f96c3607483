//! The cluster token: whoever knows it may speak to this cluster, nobody else.
//!
//! It travels as `authorization: Bearer TOKEN` on every gRPC call and HTTP request, and in the
//! hello of links between nodes. The channels of [`crate::grpc`] add it by themselves.

use std::fmt;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// A shorter token could be guessed.
pub const TOKEN_LEN_MIN: usize = 16;
/// A longer one is a file that was named by mistake.
pub const TOKEN_LEN_MAX: usize = 512;
/// What stands before it in the header.
pub const SCHEME: &str = "Bearer ";
/// What a caller without it is told, whatever it asked for.
pub const NEEDED: &str = "this cluster needs its token; give it with --token-file or MOBULA_TOKEN";

/// A cluster token. It does not show itself in logs.
#[derive(Clone)]
pub struct Token(Arc<str>);

impl Token {
    /// Takes a token as it stands in a file or variable: surrounding white space does not count.
    ///
    /// # Errors
    /// It is too short, too long, or not visible ASCII. The text does not repeat it.
    pub fn new(text: &str) -> Result<Token, String> {
        let text = text.trim();
        if !(TOKEN_LEN_MIN..=TOKEN_LEN_MAX).contains(&text.len()) {
            return Err(format!(
                "a cluster token has {TOKEN_LEN_MIN} to {TOKEN_LEN_MAX} characters, not {}; make one with \
                 `mobula token new`",
                text.len()
            ));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(
                "a cluster token is one word of visible ASCII; make one with `mobula token new`".into()
            );
        }
        Ok(Token(text.into()))
    }

    /// The token itself, for a message to a peer.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether `offered` is this token; takes as long wherever they differ.
    pub fn matches(&self, offered: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(offered).into()
    }

    /// Whether an `authorization` header carries this token.
    pub fn is_in(&self, header: Option<&[u8]>) -> bool {
        header.and_then(|value| value.strip_prefix(SCHEME.as_bytes())).is_some_and(|word| self.matches(word))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// Adds the token, if there is one, to every call of a channel.
#[derive(Clone)]
pub struct ShowToken(Option<MetadataValue<Ascii>>);

impl ShowToken {
    /// Shows `token`.
    pub fn new(token: Option<&Token>) -> Self {
        ShowToken(token.map(|token| {
            let mut value: MetadataValue<Ascii> =
                format!("{SCHEME}{}", token.reveal()).parse().expect("visible ASCII");
            value.set_sensitive(true);
            value
        }))
    }
}

impl Interceptor for ShowToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_matches_and_it_never_shows() {
        let token = Token::new(" 0123456789abcdef\n").expect("good");
        assert!(token.matches(b"0123456789abcdef"));
        for wrong in ["", "0123456789abcde", "0123456789abcdeg", "0123456789abcdef0"] {
            assert!(!token.matches(wrong.as_bytes()), "{wrong}");
        }
        assert!(token.is_in(Some(b"Bearer 0123456789abcdef")));
        assert!(!token.is_in(Some(b"0123456789abcdef")) && !token.is_in(None));
        assert!(!format!("{token:?}").contains("0123"));
        for bad in ["short", "has a space in the middle", "überlang-überlang"] {
            let why = Token::new(bad).expect_err(bad);
            assert!(why.contains("mobula token new") && !why.contains(bad), "{why}");
        }
    }
}
