//! The program `resolvconf`, which keeps `/etc/resolv.conf` from records that others give it: openresolv's or Debian's own.
//!
//! The C library asks the first server of `/etc/resolv.conf` for everything, so our record must come first, and we pass on
//! what is not ours to the servers of the other records.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use ringmesh_proto::control::Reason;

use super::resolv_conf::ResolvConf;
use crate::error::Failure;

/// A run that takes longer is ended: it may start what it likes, but we wait for it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often is looked whether it ended.
const INTERVAL: Duration = Duration::from_millis(5);
/// What is read of its output, bytes.
const OUTPUT_MAX: u64 = 64 << 10;
/// Where the programs that it runs are.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where Debian's keeps what it runs after a change.
const DEBIAN_SCRIPTS: &str = "/etc/resolvconf/update.d";

/// Which program of that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavor {
    /// openresolv: takes out a record that is not there only when it is told to.
    Openresolv,
    /// Debian's: knows no such flag.
    Debian,
}

/// A resolvconf program and our record in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolvconf {
    program: PathBuf,
    flavor: Flavor,
    record: String,
}

impl Resolvconf {
    /// Finds the program, and knows which one it is.
    ///
    /// # Errors
    /// In words: there is none that could be used.
    pub(crate) fn find(candidates: &[PathBuf], interface: &str) -> Result<Self, String> {
        let Some(program) = candidates.iter().find(|path| path.is_file()) else {
            return Err("resolvconf is not installed".to_owned());
        };
        let shown = program.display();
        let real = fs::canonicalize(program).map_err(|error| format!("{shown}: {error}"))?;
        if real.file_name().is_some_and(|name| name == "resolvectl" || name == "systemd-resolve") {
            return Err(format!("{shown} is systemd-resolved under another name"));
        }
        let version = run(program, &["--version"], "").map(|output| output.text).unwrap_or_default();
        let flavor = if version.contains("openresolv") {
            Flavor::Openresolv
        } else if version.contains("Debian resolvconf") || Path::new(DEBIAN_SCRIPTS).is_dir() {
            Flavor::Debian
        } else {
            return Err(format!("{shown} is neither openresolv's nor Debian's"));
        };
        Ok(Self { program: program.clone(), flavor, record: record_of(interface) })
    }

    /// The one that an earlier daemon used.
    pub(crate) fn known(program: &Path, flavor: Flavor, record: &str) -> Self {
        Self { program: program.to_owned(), flavor, record: record.to_owned() }
    }

    /// The program's path.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Which program of that name it is.
    pub(crate) fn flavor(&self) -> Flavor {
        self.flavor
    }

    /// Our record's name.
    pub(crate) fn record(&self) -> &str {
        &self.record
    }

    /// Gives our record, and sees that `resolv_conf` names our server first; else no one would be asked for mesh names.
    ///
    /// # Errors
    /// The program does not run or refuses, or puts somebody else first: a resolver on this machine, say.
    pub(crate) fn put(
        &self,
        server: IpAddr,
        search: Option<&str>,
        resolv_conf: &Path,
    ) -> Result<(), Failure> {
        let mut text = format!("nameserver {server}\n");
        if let Some(zone) = search {
            text.push_str(&format!("search {zone}\n"));
        }
        self.run(&["-a", &self.record], &text)?;
        let servers = ResolvConf::read(resolv_conf).unwrap_or_default().servers;
        if servers.first() == Some(&server) {
            return Ok(());
        }
        let first = servers.first().map_or_else(|| "nobody".to_owned(), ToString::to_string);
        Err(Failure::new(
            Reason::Conflict,
            format!(
                "{} puts {first} first in {}, so that mesh names would be asked of it",
                self.program.display(),
                resolv_conf.display()
            ),
        ))
    }

    /// Takes our record out.
    ///
    /// # Errors
    /// The program does not run or refuses.
    pub(crate) fn remove(&self) -> Result<(), Failure> {
        let forced: &[&str] = match self.flavor {
            // No error if there is none.
            Flavor::Openresolv => &["-f"],
            Flavor::Debian => &[],
        };
        self.run(&[forced, &["-d", &self.record]].concat(), "").map(drop)
    }

    /// The servers of the other records, or, where there are none, those that `resolv_conf` has besides ours.
    ///
    /// None on this machine itself: a resolver here would get our record too, and ask us back.
    pub(crate) fn others(&self, resolv_conf: &Path, own: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        // An older one knows no lists, and says so.
        let records = run(&self.program, &["-l"], "").map(|output| output.text).unwrap_or_default();
        let mut servers = ResolvConf::parse(&records).servers;
        if servers.iter().all(|server| own.contains(server)) {
            servers = ResolvConf::read(resolv_conf).unwrap_or_default().servers;
        }
        servers.retain(|server| !own.contains(server) && !server.is_loopback());
        servers
    }

    fn run(&self, arguments: &[&str], input: &str) -> Result<Output, Failure> {
        let line = format!("{} {}", self.program.display(), arguments.join(" "));
        let output = run(&self.program, arguments, input)
            .map_err(|error| Failure::host(format!("running `{line}`"), &error))?;
        if output.ok {
            return Ok(output);
        }
        let words = output.text.trim();
        let words = if words.is_empty() { "without a word" } else { words };
        Err(Failure::new(Reason::Host, format!("`{line}` failed: {words}")))
    }
}

/// What our record is called: both programs put `tun0` and whatever begins like it before real interfaces.
fn record_of(interface: &str) -> String {
    format!("tun0.{interface}.mesh")
}

/// Whose record of ours it is, if one could be called so.
pub(super) fn interface_of(record: &str) -> Option<&str> {
    record.strip_prefix("tun0.")?.strip_suffix(".mesh")
}

/// Whether the file was made by a resolvconf program; else a record of ours might destroy what somebody wrote by hand.
pub(crate) fn made(resolv_conf: &Path) -> bool {
    let in_its_folder = fs::read_link(resolv_conf)
        .is_ok_and(|target| target.components().any(|part| part.as_os_str() == "resolvconf"));
    in_its_folder
        || ResolvConf::read(resolv_conf).is_ok_and(|found| {
            let mut comments = found.comments.iter();
            comments.any(|line| line.to_ascii_lowercase().contains("generated by resolvconf"))
        })
}

struct Output {
    ok: bool,
    /// Of both outputs.
    text: String,
}

/// Runs a program to its end, for a bounded time.
fn run(program: &Path, arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut child = Command::new(program)
        .args(arguments)
        // openresolv takes variables for flags (`IF_EXCLUSIVE`), and ours may have anything.
        .env_clear()
        .env("PATH", PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // What it starts may keep its outputs open, so that their end is not waited for.
    let (told, heard) = mpsc::channel();
    let outputs = [
        child.stdout.take().map(|output| Box::new(output) as Box<dyn io::Read + Send>),
        child.stderr.take().map(|output| Box::new(output) as Box<dyn io::Read + Send>),
    ];
    for output in outputs.into_iter().flatten() {
        let told = told.clone();
        thread::spawn(move || {
            let mut text = Vec::new();
            let _ = output.take(OUTPUT_MAX).read_to_end(&mut text);
            let _ = told.send(text);
        });
    }
    drop(told);
    if let Some(mut stdin) = child.stdin.take() {
        // A few lines: less than a pipe holds. Who does not read them says why by its exit status.
        let _ = stdin.write_all(input.as_bytes());
    }
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it did not end within 10 s"));
        }
        thread::sleep(INTERVAL);
    };
    let mut text = Vec::new();
    while let Ok(mut part) = heard.recv_timeout(Duration::from_millis(200)) {
        text.append(&mut part);
    }
    Ok(Output { ok: status.success(), text: String::from_utf8_lossy(&text).into_owned() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    /// A program that acts as openresolv as far as we use it, and keeps a diary.
    const FAKE: &str = r##"#!/bin/sh
echo "$*" >> DIR/diary
case "$1" in
    --version) echo "openresolv 3.12.0" ;;
    -a) cat > "DIR/$2" ;;
    -f) rm -f "DIR/$3" ;;
    -l) echo "# resolv.conf from eth0"; echo "nameserver 192.0.2.53"; echo "nameserver 127.0.0.1"
        echo "# resolv.conf from tun0.mesh0.mesh"; echo "nameserver 100.64.0.1" ;;
    *) echo "no $1 here" >&2; exit 3 ;;
esac
"##;

    fn script(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("resolvconf");
        fs::write(&path, text.replace("DIR", folder.to_str().unwrap())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn openresolv_gets_our_record_first_and_gives_the_servers_of_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let program = script(folder.path(), FAKE);
        let found = Resolvconf::find(&["/nowhere/resolvconf".into(), program], "mesh0").unwrap();
        assert_eq!((found.flavor(), found.record()), (Flavor::Openresolv, "tun0.mesh0.mesh"));
        let resolv_conf = folder.path().join("resolv.conf");
        fs::write(&resolv_conf, "nameserver 100.64.0.1\nnameserver 192.0.2.53\n").unwrap();
        found.put("100.64.0.1".parse().unwrap(), Some("mesh"), &resolv_conf).unwrap();
        let record = folder.path().join("tun0.mesh0.mesh");
        assert_eq!(fs::read_to_string(&record).unwrap(), "nameserver 100.64.0.1\nsearch mesh\n");
        let own = BTreeSet::from(["100.64.0.1".parse().unwrap()]);
        let others = found.others(&folder.path().join("none"), &own);
        assert_eq!(others, ["192.0.2.53".parse::<IpAddr>().unwrap()], "neither ourselves nor the loopback");
        found.remove().unwrap();
        assert!(!record.exists());
        let diary = fs::read_to_string(folder.path().join("diary")).unwrap();
        assert_eq!(diary, "--version\n-a tun0.mesh0.mesh\n-l\n-f -d tun0.mesh0.mesh\n");
    }

    #[test]
    fn the_shim_of_resolved_is_not_taken_for_resolvconf() {
        let folder = tempfile::tempdir().unwrap();
        let resolvectl = folder.path().join("resolvectl");
        fs::write(&resolvectl, "").unwrap();
        let shim = folder.path().join("resolvconf");
        symlink(&resolvectl, &shim).unwrap();
        assert!(Resolvconf::find(&[shim], "mesh0").unwrap_err().contains("systemd-resolved"));
        assert!(Resolvconf::find(&[], "mesh0").unwrap_err().contains("not installed"));
    }

    #[test]
    fn a_failing_run_is_told_with_the_programs_own_words() {
        let folder = tempfile::tempdir().unwrap();
        let program = script(folder.path(), "#!/bin/sh\necho 'no room left' >&2\nexit 1\n");
        let found = Resolvconf::known(&program, Flavor::Openresolv, "mesh0.mesh");
        let words = found.remove().unwrap_err().to_string();
        assert!(words.contains("no room left") && words.contains("-d mesh0.mesh"), "{words}");
        let gone = Resolvconf::known(&folder.path().join("gone"), Flavor::Debian, "mesh0.mesh");
        let words = gone.put("100.64.0.1".parse().unwrap(), None, folder.path()).unwrap_err().to_string();
        assert!(words.contains("gone"), "{words}");
    }

    #[test]
    fn a_server_that_does_not_come_first_is_no_use() {
        let folder = tempfile::tempdir().unwrap();
        let program = script(folder.path(), FAKE);
        let found = Resolvconf::find(&[program], "mesh0").unwrap();
        let resolv_conf = folder.path().join("resolv.conf");
        fs::write(&resolv_conf, "nameserver 127.0.0.1\nnameserver 100.64.0.1\n").unwrap();
        let words = found.put("100.64.0.1".parse().unwrap(), None, &resolv_conf).unwrap_err().to_string();
        assert!(words.contains("puts 127.0.0.1 first"), "{words}");
    }

    #[test]
    fn only_a_file_that_the_program_made_is_given_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        for (text, expected) in [
            ("# Generated by resolvconf\nnameserver 192.0.2.1\n", true),
            ("# Dynamic resolv.conf(5) file for glibc resolver(3) generated by resolvconf(8)\n", true),
            ("nameserver 192.0.2.1\n", false),
            ("# Generated by NetworkManager\nnameserver 192.0.2.1\n", false),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(made(&path), expected, "{text}");
        }
        fs::remove_file(&path).unwrap();
        symlink("../run/resolvconf/resolv.conf", &path).unwrap();
        assert!(made(&path));
    }
}
