//! `meshctl token create|list|revoke` and the join line of `coordinator up`.

use std::net::SocketAddr;

use ringmesh_proto::admin;
use ringmesh_tunnel::enroll::JoinToken;
use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

use super::{
    Document,
    table::{Columns, moment},
};

/// A join token without its secret.
#[derive(Debug, Serialize)]
pub(crate) struct Token {
    pub(crate) id: String,
    pub(crate) created_ms: u64,
    pub(crate) expires_ms: u64,
    /// `null`: any number.
    pub(crate) max_uses: Option<u32>,
    pub(crate) uses: u32,
    pub(crate) tags: Vec<String>,
    pub(crate) ephemeral: bool,
    pub(crate) relay: bool,
    pub(crate) revoked: bool,
}

impl From<admin::Token> for Token {
    fn from(token: admin::Token) -> Self {
        Self {
            id: token.id,
            created_ms: token.created_ms,
            expires_ms: token.expires_ms,
            max_uses: (token.max_uses > 0).then_some(token.max_uses),
            uses: token.uses,
            tags: token.tags,
            ephemeral: token.ephemeral,
            relay: token.relay,
            revoked: token.revoked,
        }
    }
}

impl Token {
    fn state(&self, now: u64) -> &'static str {
        if self.revoked {
            "revoked"
        } else if self.max_uses.is_some_and(|most| self.uses >= most) {
            "used"
        } else if self.expires_ms > 0 && self.expires_ms <= now {
            "expired"
        } else {
            "valid"
        }
    }

    fn command(&self) -> &'static str {
        if self.relay { "meshctl relay run" } else { "meshctl join" }
    }

    fn uses(&self) -> String {
        self.max_uses
            .map_or_else(|| format!("{} of any", self.uses), |most| format!("{} of {most}", self.uses))
    }

    /// What a person should know of a new token: `token 5f…, for one node, expires in 24 h`.
    pub(crate) fn terms(&self, now: u64) -> String {
        let what = if self.relay { "relay" } else { "node" };
        let nodes = match self.max_uses {
            None => format!("any number of {what}s"),
            Some(1) => format!("one {what}"),
            Some(most) => format!("{most} {what}s"),
        };
        let tags =
            if self.tags.is_empty() { String::new() } else { format!(", tags {}", self.tags.join(",")) };
        let expiry = match self.expires_ms {
            0 => "does not expire".to_owned(),
            at => format!("expires {}", moment(at, now)),
        };
        format!("token {}: for {nodes}, {expiry}{tags}", self.id)
    }
}

/// A new token, the only place where its secret is seen: `schemas/token-created.json`.
#[derive(Serialize)]
pub(crate) struct Created {
    pub(crate) token: Token,
    #[serde(serialize_with = "reveal")]
    pub(crate) secret: Zeroizing<String>,
    /// The command for the other machine.
    #[serde(serialize_with = "reveal")]
    pub(crate) join: Zeroizing<String>,
    /// Whether people get the command or only the secret.
    #[serde(skip)]
    pub(crate) as_command: bool,
}

/// Writes a secret into the result that exists to hand it over.
fn reveal<S: Serializer>(secret: &Zeroizing<String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret)
}

impl Created {
    /// Where a node that joins with it will connect, in words; `None` if the token cannot be read, by an older program.
    pub(crate) fn whereto(&self) -> Option<String> {
        let token: JoinToken = self.secret.parse().ok()?;
        let coordinators = token.coordinators().join(" or ");
        let local = token.coordinators().iter().all(|coordinator| is_loopback(coordinator));
        let hint =
            if local { ", which only this machine can: name another address with --advertise" } else { "" };
        Some(format!("nodes will connect to {coordinators}{hint}"))
    }

    /// `as_command`: the text form is the whole `meshctl join` line, not the secret alone.
    pub(crate) fn new(response: admin::CreateTokenResponse, as_command: bool) -> Self {
        let secret = Zeroizing::new(response.secret);
        let token = Token::from(response.token.unwrap_or_default());
        let join = Zeroizing::new(format!("{} --token {}", token.command(), secret.as_str()));
        Self { token, secret, join, as_command }
    }

    /// The command that takes the token on the other machine.
    pub(crate) fn command(&self) -> &'static str {
        self.token.command()
    }
}

fn is_loopback(coordinator: &str) -> bool {
    match coordinator.parse::<SocketAddr>() {
        Ok(address) => address.ip().is_loopback(),
        Err(_) => coordinator.starts_with("localhost:"),
    }
}

impl Document for Created {
    fn text(&self, _: u64) -> String {
        format!("{}\n", if self.as_command { self.join.as_str() } else { self.secret.as_str() })
    }
}

/// All tokens of a network: `schemas/tokens.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Tokens {
    pub(crate) tokens: Vec<Token>,
}

impl From<admin::ListTokensResponse> for Tokens {
    fn from(response: admin::ListTokensResponse) -> Self {
        let mut tokens: Vec<Token> = response.tokens.into_iter().map(Token::from).collect();
        tokens.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
        Self { tokens }
    }
}

impl Document for Tokens {
    fn text(&self, now: u64) -> String {
        if self.tokens.is_empty() {
            return "no token; make one with: meshctl token create\n".to_owned();
        }
        let mut table =
            Columns::new(["TOKEN", "FOR", "STATE", "USES", "EXPIRES", "CREATED", "TAGS", "EPHEMERAL"]);
        for token in &self.tokens {
            table.row([
                token.id.clone(),
                if token.relay { "relays" } else { "nodes" }.to_owned(),
                token.state(now).to_owned(),
                token.uses(),
                moment(token.expires_ms, now),
                moment(token.created_ms, now),
                token.tags.join(","),
                if token.ephemeral { "yes" } else { "no" }.to_owned(),
            ]);
        }
        table.text()
    }
}

/// The token that was revoked: `schemas/token-revoked.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Revoked {
    pub(crate) token: Token,
}

impl From<admin::RevokeTokenResponse> for Revoked {
    fn from(response: admin::RevokeTokenResponse) -> Self {
        Self { token: Token::from(response.token.unwrap_or_default()) }
    }
}

impl Document for Revoked {
    fn text(&self, _: u64) -> String {
        format!(
            "revoked token {}; nodes that joined with it stay (uses: {})\n",
            self.token.id,
            self.token.uses()
        )
    }
}

#[cfg(test)]
mod tests {
    use ringmesh_tunnel::{
        enroll::TokenSecret,
        key::{IdentitySecret, TokenId},
    };

    use super::*;
    use crate::output::tests::conforms;

    const NOW: u64 = 1_790_000_000_000;

    fn token(number: u8) -> admin::Token {
        admin::Token {
            relay: false,
            id: format!("00000000000000{number:02x}"),
            created_ms: NOW - 3_600_000 * u64::from(number),
            expires_ms: NOW + 23 * 3_600_000,
            max_uses: 1,
            uses: 0,
            tags: Vec::new(),
            ephemeral: false,
            revoked: false,
        }
    }

    #[test]
    fn tokens_of_every_state() {
        let tokens = vec![
            token(1),
            admin::Token { uses: 1, ..token(2) },
            admin::Token { expires_ms: NOW - 60_000, tags: vec!["web".to_owned()], ..token(3) },
            admin::Token { revoked: true, uses: 1, max_uses: 3, ..token(4) },
            admin::Token { max_uses: 0, uses: 7, ephemeral: true, ..token(5) },
            admin::Token { relay: true, ..token(6) },
        ];
        insta::assert_snapshot!(Tokens::from(admin::ListTokensResponse { tokens }).text(NOW));
    }

    #[test]
    fn the_text_of_a_new_token_is_what_a_script_wants() {
        let response = admin::CreateTokenResponse { token: Some(token(1)), secret: "mesh1_AAAA".to_owned() };
        assert_eq!(Created::new(response.clone(), false).text(NOW), "mesh1_AAAA\n");
        assert_eq!(Created::new(response, true).text(NOW), "meshctl join --token mesh1_AAAA\n");
    }

    #[test]
    fn a_relays_token_goes_to_the_command_that_runs_one() {
        let relay = admin::Token { relay: true, ..token(1) };
        let response = admin::CreateTokenResponse { token: Some(relay), secret: "mesh1_AAAA".to_owned() };
        let created = Created::new(response, true);
        assert_eq!(created.text(NOW), "meshctl relay run --token mesh1_AAAA\n");
        conforms("token-created", &created);
        assert_eq!(created.token.terms(NOW), "token 0000000000000001: for one relay, expires in 23 h");
    }

    #[test]
    fn a_coordinator_on_the_loopback_is_pointed_out() {
        let whereto = |coordinators: &[&str]| {
            let root = IdentitySecret::from_seed([7; 32]).public_key();
            let coordinators = coordinators.iter().map(|coordinator| (*coordinator).to_owned()).collect();
            let token =
                JoinToken::new(root, TokenId::from_bytes([9; 8]), TokenSecret::generate(), coordinators);
            let secret = token.unwrap().reveal().to_string();
            Created::new(admin::CreateTokenResponse { token: None, secret }, false).whereto().unwrap()
        };
        assert_eq!(
            whereto(&["192.0.2.1:443", "mesh.example.org:443"]),
            "nodes will connect to 192.0.2.1:443 or mesh.example.org:443"
        );
        for local in ["127.0.0.1:443", "[::1]:443", "localhost:443"] {
            assert!(whereto(&[local]).contains("--advertise"), "{local}");
        }
    }

    #[test]
    fn terms_are_told_in_words() {
        assert_eq!(Token::from(token(1)).terms(NOW), "token 0000000000000001: for one node, expires in 23 h");
        let wide = admin::Token { max_uses: 0, tags: vec!["web".to_owned()], expires_ms: 0, ..token(2) };
        assert_eq!(
            Token::from(wide).terms(NOW),
            "token 0000000000000002: for any number of nodes, does not expire, tags web"
        );
    }
}
