//! The release tarball as `deploy/dev/release` made it, and a server where machines of the lab fetch it.

use std::{
    env, fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use ringmesh_lab::{Host, LabError};

/// The folder where the tarball is, unless it is where `deploy/dev/release` puts it by default.
pub const FOLDER_VARIABLE: &str = "MESH_RELEASE";
/// There.
const FOLDER: &str = "target/release-tarball";
/// How long a client of the server may take for its request.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest request that is read.
const MAX_REQUEST: usize = 8192;

/// A release tarball.
#[derive(Debug, Clone)]
pub struct Tarball {
    /// Where it is.
    pub path: PathBuf,
    /// Its name: `ringmesh-0.1.0-x86_64-linux.tar.gz`.
    pub name: String,
    /// Its SHA-256 as in the `SHA256SUMS` beside it, in hexadecimal digits.
    pub sha256: String,
    /// The version in its name.
    pub version: String,
}

impl Tarball {
    /// The one that was made last.
    ///
    /// # Panics
    /// If there is none, or it is not what its checksum says; the message says how to make it.
    #[must_use]
    pub fn find() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let folder =
            env::var_os(FOLDER_VARIABLE).map_or_else(|| root.join(FOLDER), |folder| root.join(folder));
        let sums = fs::read_to_string(folder.join("SHA256SUMS")).unwrap_or_else(|error| {
            panic!("{}: no release tarball ({error}): deploy/dev/release makes it", folder.display())
        });
        let line = sums.lines().next().and_then(|line| line.split_once("  "));
        let (sha256, name) = line.unwrap_or_else(|| panic!("SHA256SUMS: {sums}"));
        let checked = Command::new("sha256sum")
            .args(["--check", "--status", "SHA256SUMS"])
            .current_dir(&folder)
            .status();
        assert!(checked.is_ok_and(|status| status.success()), "{name} is not what SHA256SUMS says");
        let version =
            name.strip_prefix("ringmesh-").and_then(|rest| rest.strip_suffix("-x86_64-linux.tar.gz"));
        Self {
            path: folder.join(name),
            name: name.to_owned(),
            sha256: sha256.to_owned(),
            version: version.unwrap_or_else(|| panic!("{name} names no version")).to_owned(),
        }
    }

    /// The `SHA256SUMS` beside it.
    #[must_use]
    pub fn sums(&self) -> PathBuf {
        self.path.with_file_name("SHA256SUMS")
    }

    /// Serves it over HTTP on `host`, until this program ends; answers its URL.
    ///
    /// # Errors
    /// The lab's, and those of a port that cannot be had.
    pub fn serve(&self, host: &Host) -> Result<String, LabError> {
        let address = SocketAddr::new(host.ipv4().into(), 80);
        let failed = |source| LabError::System { what: format!("serve on {address}"), source };
        let listener = host.enter(|| TcpListener::bind(address))?.map_err(failed)?;
        let served = self.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Whoever hangs up is not served.
                let _ = served.answer(stream);
            }
        });
        Ok(format!("http://{address}/{}", self.name))
    }

    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut request = Vec::new();
        let mut part = [0; 1024];
        while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < MAX_REQUEST {
            match stream.read(&mut part)? {
                0 => return Ok(()),
                len => request.extend_from_slice(part.get(..len).unwrap_or_default()),
            }
        }
        if !request.starts_with(format!("GET /{} HTTP/1.", self.name).as_bytes()) {
            return stream
                .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        let content = fs::read(&self.path)?;
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", content.len());
        stream.write_all(head.as_bytes())?;
        stream.write_all(&content)
    }
}
