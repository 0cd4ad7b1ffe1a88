//! What passes an interface, as it is on the wire: to look for what must not be there.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ChildStdout, Stdio},
    thread::JoinHandle,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{error::LabError, host::Host};

/// Kilobytes that `tcpdump` may fall behind before the kernel drops frames.
const BUFFER_KIB: &str = "16384";

/// A capture of whole frames that goes on until it is [stopped](Capture::stop) or dropped.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Child,
    frames: Option<JoinHandle<std::io::Result<Vec<u8>>>>,
    remarks: BufReader<std::process::ChildStderr>,
}

/// What was captured.
#[derive(Debug)]
pub struct Captured {
    /// All frames, each after its header, in the format of libpcap's files.
    pub bytes: Vec<u8>,
    /// Frames that came too fast to be kept: what looks for something that must not be there wants none.
    pub dropped: u64,
}

impl Captured {
    /// Whether `pattern` is anywhere in it.
    #[must_use]
    pub fn contains(&self, pattern: &[u8]) -> bool {
        contains(&self.bytes, pattern)
    }
}

/// Whether `pattern`, which is not empty, is somewhere in `bytes`.
fn contains(bytes: &[u8], pattern: &[u8]) -> bool {
    let Some((first, rest)) = pattern.split_first() else { return false };
    let mut left = bytes;
    // Most bytes are not the first one: looking for that alone is many times faster than comparing windows.
    while let Some(place) = left.iter().position(|byte| byte == first) {
        left = &left[place + 1..];
        if left.starts_with(rest) {
            return true;
        }
    }
    false
}

impl Capture {
    /// Begins to capture on an interface of `host`; frames sent after this has returned are in it.
    ///
    /// # Errors
    /// [`LabError::NotInstalled`] without `tcpdump`; [`LabError::Refused`] with its words if it does not begin.
    pub fn start(host: &Host, interface: &str) -> Result<Self, LabError> {
        let what = || format!("capture on {interface} of {}", host.name());
        let failed = |error: std::io::Error| LabError::system(what(), error);
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/bin:/usr/sbin:/sbin";
        // As root it would become a user that a user namespace may not have.
        let arguments =
            ["-Z", "root", "-n", "--immediate-mode", "-U", "-s", "0", "-B", BUFFER_KIB, "-w", "-"];
        let mut tcpdump = host
            .command("tcpdump")?
            .args(arguments)
            .args(["-i", interface])
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| LabError::starting("tcpdump", "tcpdump", error))?;
        let (Some(frames), Some(remarks)) = (tcpdump.stdout.take(), tcpdump.stderr.take()) else {
            return Err(failed(std::io::ErrorKind::BrokenPipe.into()));
        };
        let mut capture = Self {
            tcpdump,
            frames: Some(std::thread::spawn(move || read(frames))),
            remarks: BufReader::new(remarks),
        };
        let mut said = String::new();
        while !said.contains("listening on") {
            if capture.remarks.read_line(&mut said).map_err(failed)? == 0 {
                return Err(LabError::Refused { what: what(), said: said.trim().to_owned() });
            }
        }
        Ok(capture)
    }

    /// Ends the capture.
    ///
    /// # Errors
    /// [`LabError::Refused`] if `tcpdump` does not say how many frames it lost.
    pub fn stop(mut self) -> Result<Captured, LabError> {
        let failed = |error: std::io::Error| LabError::system("end a capture", error);
        let pid =
            i32::try_from(self.tcpdump.id()).map_err(|_| failed(std::io::ErrorKind::NotFound.into()))?;
        kill(Pid::from_raw(pid), Signal::SIGINT).map_err(|error| failed(error.into()))?;
        let mut said = String::new();
        self.remarks.read_to_string(&mut said).map_err(failed)?;
        self.tcpdump.wait().map_err(failed)?;
        let bytes = match self.frames.take().map(JoinHandle::join) {
            Some(Ok(read)) => read.map_err(failed)?,
            Some(Err(_)) | None => Vec::new(),
        };
        let dropped = said
            .lines()
            .find_map(|line| line.strip_suffix(" dropped by kernel"))
            .and_then(|words| words.split_whitespace().next()?.parse().ok());
        match dropped {
            Some(dropped) => Ok(Captured { bytes, dropped }),
            None => Err(LabError::Refused { what: "end a capture".to_owned(), said: said.trim().to_owned() }),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
        if let Some(frames) = self.frames.take() {
            let _ = frames.join();
        }
    }
}

fn read(mut frames: ChildStdout) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    frames.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::contains;

    #[test]
    fn a_pattern_is_found_wherever_it_is() {
        assert!(contains(b"canary", b"canary"));
        assert!(contains(b"cacacanary", b"canary"));
        assert!(contains(b"a canary here", b"canary"));
        assert!(!contains(b"canar", b"canary"));
        assert!(!contains(b"canarcanar", b"canary"));
        assert!(!contains(b"", b"canary"));
    }
}
