//! Which coordinator is asked: the one of this machine by its unix socket, or one elsewhere over TLS, with an API key.

use std::{
    fmt,
    fs::{self, File},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tonic::{
    metadata::AsciiMetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use zeroize::Zeroizing;

use crate::{
    cli::AdminSocket,
    connect::Connection,
    daemon::Daemon,
    failure::{Exit, Failure},
    output, rights,
};

/// What a key file holds at most; one that is longer is another file.
const MAX_KEY_FILE: u64 = 1024;
/// The port that coordinators listen on unless told otherwise.
const DEFAULT_PORT: u16 = 443;
/// The environment variable that may hold a key.
pub(crate) const KEY_VARIABLE: &str = "MESH_API_KEY";
/// What every key begins with.
const KEY_FORM: &str = "meshkey1_";
/// How long a coordinator elsewhere has to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the coordinator is, and what proves that one may ask it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CoordinatorAt {
    #[command(flatten)]
    socket: AdminSocket,
    /// Asks a coordinator elsewhere, over TLS and with an API key, instead of this machine's
    #[arg(long, env = "MESH_SERVER", value_name = "HOST[:PORT]", requires = "api_key")]
    server: Option<String>,
    /// The API key for it, best as file:PATH
    #[arg(long, env = KEY_VARIABLE, value_name = "KEY", hide_env_values = true)]
    api_key: Option<KeySource>,
    /// The certificate to trust, as `meshctl coordinator ca` prints it [default: those that the system trusts]
    #[arg(long, env = "MESH_CA", value_name = "FILE", requires = "server")]
    ca: Option<PathBuf>,
}

impl CoordinatorAt {
    /// Connects.
    pub(crate) async fn open(&self) -> Result<Connection, Failure> {
        match (&self.server, &self.api_key) {
            (Some(server), Some(key)) => {
                let header = key.header()?;
                let channel = connect(server, self.ca.as_deref()).await?;
                Ok(Connection::over_tls(Daemon::Coordinator, channel, header))
            }
            // The socket takes no key: a forgotten server must not become a change to this machine's coordinator, with the
            // rights of whoever is logged in.
            (None, Some(_)) => {
                Err(Failure::new(Exit::Usage, "an API key was given, and no coordinator to ask with it")
                    .attempt("say which: --server HOST (MESH_SERVER)")
                    .attempt(format!(
                        "or ask this machine's, without a key: no --api-key, and unset {KEY_VARIABLE}"
                    )))
            }
            (_, None) => Connection::open(Daemon::Coordinator, &self.socket.socket).await,
        }
    }
}

/// The value of `--api-key` as given: the key itself, or `file:PATH`.
#[derive(Clone)]
struct KeySource(Zeroizing<String>);

/// As for any secret: nothing of it.
impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySource(..)")
    }
}

impl From<String> for KeySource {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl KeySource {
    /// The header that carries the key.
    fn header(&self) -> Result<AsciiMetadataValue, Failure> {
        let text = match self.0.strip_prefix("file:") {
            Some(path) => read_key(Path::new(path))?,
            None => {
                if std::env::args_os().any(|word| is_key(word.as_encoded_bytes())) {
                    output::note(
                        "warning: this API key can be read by every user of this machine while the command runs (ps); \
                         give it as --api-key file:PATH",
                    );
                }
                self.0.clone()
            }
        };
        let header = Zeroizing::new(format!("Bearer {}", text.trim()));
        let fits = text.trim().starts_with(KEY_FORM);
        let value = header.parse::<AsciiMetadataValue>().ok().filter(|_| fits);
        let mut value = value.ok_or_else(|| {
            Failure::new(Exit::Usage, "this is not an API key")
                .cause("it begins with meshkey1_, and is one word")
                .attempt("make one on the coordinator: meshctl key create")
        })?;
        value.set_sensitive(true);
        Ok(value)
    }
}

fn read_key(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let cannot = |error: std::io::Error| {
        rights::refused(
            "cannot read the API key",
            format!("{}: {error}", path.display()),
            &error,
            Exit::Usage,
        )
    };
    let file = File::open(path).map_err(cannot)?;
    let mode = file.metadata().map_err(cannot)?.mode();
    if let Some(warning) = exposure(path, mode) {
        output::note(warning);
    }
    let mut text = Zeroizing::new(String::with_capacity(MAX_KEY_FILE as usize + 1));
    file.take(MAX_KEY_FILE + 1).read_to_string(&mut text).map_err(cannot)?;
    if text.len() as u64 > MAX_KEY_FILE {
        return Err(Failure::new(Exit::Usage, "cannot read the API key")
            .cause(format!("{}: too long for a file with one key", path.display())));
    }
    Ok(text)
}

/// What to say of a file with these permissions that holds a key. A group that may read it was chosen by somebody; everybody was not.
fn exposure(path: &Path, mode: u32) -> Option<String> {
    (mode & 0o007 != 0).then(|| {
        let path = path.display();
        format!("warning: every user of this machine can get at the API key in {path} (mode {:03o}); run: chmod o= {path}", mode & 0o777)
    })
}

/// Whether a word of the command line has a key in it.
fn is_key(word: &[u8]) -> bool {
    word.strip_prefix(b"--api-key=").unwrap_or(word).starts_with(KEY_FORM.as_bytes())
}

/// A server as it is typed, with its port.
fn with_port(server: &str) -> String {
    let name = server.strip_prefix("https://").unwrap_or(server).trim_end_matches('/');
    let after_host = name.rfind(']').map_or(name, |end| name.get(end..).unwrap_or_default());
    match after_host.contains(':') {
        true => name.to_owned(),
        false => format!("{name}:{DEFAULT_PORT}"),
    }
}

async fn connect(server: &str, ca: Option<&Path>) -> Result<Channel, Failure> {
    let server = with_port(server);
    let mut tls = ClientTlsConfig::new();
    tls = match ca {
        Some(path) => {
            let pem = fs::read(path).map_err(|error| {
                let cause = format!("{}: {error}", path.display());
                rights::refused("cannot read the certificate to trust", cause, &error, Exit::Usage)
            })?;
            tls.ca_certificate(Certificate::from_pem(pem))
        }
        None => tls.with_native_roots(),
    };
    let endpoint = Endpoint::from_shared(format!("https://{server}"))
        .and_then(|endpoint| endpoint.tls_config(tls))
        .map_err(|error| {
            Failure::new(Exit::Usage, format!("{server} is not a coordinator's address"))
                .cause(chain(&error))
                .attempt("write HOST, or HOST:PORT")
        })?;
    endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await.map_err(|error| {
        let failure =
            Failure::new(Exit::Unreachable, format!("cannot connect to the coordinator at {server}"));
        let failure = failure.cause(chain(&error));
        match ca {
            Some(_) => failure,
            None => failure
                .attempt("give the certificate that `meshctl coordinator ca` prints there with --ca FILE"),
        }
    })
}

/// An error with what brought it about, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let all = std::iter::successors(Some(error), |error| error.source());
    let mut words: Vec<String> = all.map(ToString::to_string).collect();
    words.dedup();
    words.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_a_port_is_at_443() {
        for (typed, meant) in [
            ("mesh.example.org", "mesh.example.org:443"),
            ("mesh.example.org:8443", "mesh.example.org:8443"),
            ("https://mesh.example.org/", "mesh.example.org:443"),
            ("192.0.2.1", "192.0.2.1:443"),
            ("[2001:db8::1]", "[2001:db8::1]:443"),
            ("[2001:db8::1]:8443", "[2001:db8::1]:8443"),
        ] {
            assert_eq!(with_port(typed), meant);
        }
    }

    #[test]
    fn a_key_that_everybody_can_read_is_warned_of() {
        for (mode, warned) in [(0o100_600, false), (0o100_640, false), (0o100_644, true), (0o100_602, true)] {
            assert_eq!(exposure(Path::new("/k"), mode).is_some(), warned, "{mode:o}");
        }
        for (word, key) in [
            ("meshkey1_A", true),
            ("--api-key=meshkey1_A", true),
            ("file:meshkey1_A", false),
            ("--api-key", false),
        ] {
            assert_eq!(is_key(word.as_bytes()), key, "{word}");
        }
    }

    #[test]
    fn a_key_is_shown_nowhere_and_checked_before_it_is_sent() {
        let key = KeySource::from("meshkey1_c2VjcmV0".to_owned());
        let header = key.header().unwrap();
        assert_eq!(header.to_str().unwrap(), "Bearer meshkey1_c2VjcmV0");
        assert!(!format!("{header:?} {key:?}").contains("c2VjcmV0"));
        for wrong in ["", "mesh1_AAAA", "meshkey1_a\nb"] {
            let failure = KeySource::from(wrong.to_owned()).header().unwrap_err();
            assert_eq!(failure.exit(), Exit::Usage, "{wrong:?}");
            assert!(!failure.to_string().contains("AAAA"));
        }
    }
}
