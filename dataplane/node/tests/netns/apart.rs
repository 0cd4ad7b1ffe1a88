//! A coordinator with its relay as a process of its own: whose memory can be looked at and measured.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    process::{Child, Stdio},
};

use tokio::{runtime::Builder, sync::oneshot};

use crate::world::World;

/// Tells this test program, run again, to be a coordinator with the configuration in that file.
pub const BE_COORDINATOR: &str = "RINGMESH_NODE_TEST_COORDINATOR";
/// In its environment, and so in its memory: what a search of that must find.
pub const MARK: &str = "RINGMESH_NODE_TEST_MARK";
/// What it prints when it is ready.
const READY: &str = "the coordinator is ready";
/// How much of a process's memory is looked at in one piece.
const PIECE: usize = 1 << 20;

/// A process of this test program, killed when dropped.
pub struct Apart(Child);

impl Apart {
    /// Starts the coordinator of `world`, which has none yet, and waits until it is ready.
    pub fn coordinator(world: &World, mark: &str) -> Self {
        let config = world.config();
        let text = format!(
            "listen = \"{}\"\nstate_dir = {:?}\nadmin_socket = {:?}\nheartbeat_seconds = {}\n",
            config.listen, config.state_dir, config.admin_socket, config.heartbeat_seconds
        );
        let file = world.folder().join("coordinator.toml");
        fs::write(&file, text).unwrap();
        let mut command = world.head.this_program();
        command
            .args(["be_a_coordinator", "--exact", "--nocapture"])
            .env(BE_COORDINATOR, &file)
            .env(MARK, mark);
        Self::start(command, READY)
    }

    /// Starts `command` and waits for a line that ends with `ready`.
    pub fn start(mut command: std::process::Command, ready: &str) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let is_ready = (&mut output).lines().map_while(Result::ok).any(|line| line.ends_with(ready));
        assert!(is_ready, "it is not ready: {:?}", child.wait());
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        Self(child)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// How often `pattern` is in its memory.
    pub fn count_in_memory(&self, pattern: &[u8]) -> usize {
        let pid = self.0.id();
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let mut memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
        maps.lines().filter_map(region).map(|range| count(&mut memory, range, pattern)).sum()
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes of memory that process `pid` has in use.
pub fn memory_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// The addresses of a readable region of memory, by its line in `/proc/<pid>/maps`.
fn region(line: &str) -> Option<std::ops::Range<u64>> {
    let mut words = line.split_whitespace();
    let (begin, end) = words.next()?.split_once('-')?;
    // The kernel's own pages cannot be read.
    if !words.next()?.starts_with('r') || line.ends_with("[vvar]") || line.ends_with("[vsyscall]") {
        return None;
    }
    Some(u64::from_str_radix(begin, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

fn count(memory: &mut fs::File, range: std::ops::Range<u64>, pattern: &[u8]) -> usize {
    let mut found = 0;
    let mut at = range.start;
    // Pieces overlap, so that what lies across two of them is found.
    let mut piece = vec![0; PIECE + pattern.len()];
    while at < range.end {
        let length = piece.len().min((range.end - at) as usize);
        let part = &mut piece[..length];
        if memory.seek(SeekFrom::Start(at)).and_then(|_| memory.read_exact(part)).is_ok() {
            let starts =
                part.iter().enumerate().filter(|(place, byte)| **byte == pattern[0] && *place < PIECE);
            found += starts.filter(|(place, _)| part[*place..].starts_with(pattern)).count();
        }
        at += PIECE as u64;
    }
    found
}

/// Is the coordinator, if this process was started as one.
pub fn be_coordinator(file: &str) {
    let config = ringmesh_controlplane::Config::load(file.as_ref()).unwrap();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (ready, is_ready) = oneshot::channel();
        tokio::spawn(async move {
            if is_ready.await.is_ok() {
                println!("{READY}");
            }
        });
        let run = ringmesh_controlplane::run(config, std::future::pending(), |_| {
            let _ = ready.send(());
        });
        run.await.unwrap();
    });
}
