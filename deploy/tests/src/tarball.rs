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
    /// If there is none, it is not what its checksum says, or it is [stale](Self::staleness) and the environment says `CI=true`; the message
    /// says how to make it.
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
        let found = Self {
            path: folder.join(name),
            name: name.to_owned(),
            sha256: sha256.to_owned(),
            version: version.unwrap_or_else(|| panic!("{name} names no version")).to_owned(),
        };
        if env::var_os("CI").is_some_and(|value| value == "true") {
            // Elsewhere `deploy/dev/test` says it: whoever changes a test need not build for a quarter of an hour.
            assert_eq!(found.staleness(&root), None, "what passes here says nothing of this commit");
        }
        found
    }

    /// Why it is not a release of what is checked out in `tree`, if it is not: tests would judge another program.
    ///
    /// # Panics
    /// If it does not say of which commit it is, or there is no git.
    #[must_use]
    pub fn staleness(&self, tree: &Path) -> Option<String> {
        let head = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(tree).output();
        let head = head.expect("git is there");
        if !head.status.success() {
            // Sources without their history: there is nothing to compare with.
            return None;
        }
        let head = String::from_utf8_lossy(&head.stdout).trim().to_owned();
        let commit = self.commit();
        (commit != head).then(|| {
            format!(
                "{} is of commit {commit}, and this is {head}: deploy/dev/release makes it anew",
                self.name
            )
        })
    }

    /// Of which commit it says to be, in the README inside.
    fn commit(&self) -> String {
        let inside = self.name.strip_suffix(".tar.gz").unwrap_or(&self.name);
        let mut tar = Command::new("tar");
        tar.arg("-xzOf").arg(&self.path).arg(format!("{inside}/share/doc/ringmesh/README.md"));
        let readme = tar.output().expect("tar is there");
        assert!(readme.status.success(), "{}: {}", self.name, String::from_utf8_lossy(&readme.stderr));
        let readme = String::from_utf8_lossy(&readme.stdout);
        let (_, after) = readme.split_once("Built from commit ").expect("the README names the commit");
        after.chars().take_while(char::is_ascii_hexdigit).collect()
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

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn run(folder: &Path, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn of_commit(folder: &Path, commit: &str) -> Tarball {
        let inside = "ringmesh-0.1.0-x86_64-linux";
        let name = format!("{inside}.tar.gz");
        let doc = folder.join(inside).join("share/doc/ringmesh");
        fs::create_dir_all(&doc).unwrap();
        let readme = format!("# Ringmesh 0.1.0\n\nBuilt from commit {commit}, for x86_64 Linux.\n");
        fs::write(doc.join("README.md"), readme).unwrap();
        run(folder, "tar", &["-czf", &name, inside]);
        Tarball { path: folder.join(&name), name, sha256: String::new(), version: "0.1.0".to_owned() }
    }

    #[test]
    fn a_tarball_of_another_commit_is_stale() {
        let folder = TempDir::new().unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir(&tree).unwrap();
        assert_eq!(of_commit(folder.path(), "0000").staleness(&tree), None, "nothing to compare with");
        run(&tree, "git", &["init", "--quiet"]);
        let author = ["-c", "user.name=A", "-c", "user.email=a@example.org"];
        let commit = |message| {
            run(&tree, "git", &[&author[..], &["commit", "--quiet", "--allow-empty", "-m", message]].concat())
        };
        commit("One");
        let one = of_commit(folder.path(), &run(&tree, "git", &["rev-parse", "HEAD"]));
        assert_eq!(one.staleness(&tree), None);
        commit("Two");
        let why = one.staleness(&tree).expect("it is of the commit before");
        assert!(
            why.contains(&run(&tree, "git", &["rev-parse", "HEAD"])) && why.contains("deploy/dev/release"),
            "{why}"
        );
    }
}
