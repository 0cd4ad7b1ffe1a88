//! `meshctl demo`: a coordinator and nodes as real daemons on a virtual switch, shown at work and torn down again.
//!
//! The files, in the order a reader may want them: the story with its steps and promises (`story`), the machines and
//! their daemons (`mesh`), what stands between them (`ground`), what is sent through the mesh (`echo`, `transfer`, `rules`, `names`), and
//! how it all looks (`show`).

mod echo;
mod ground;
mod mesh;
mod names;
#[cfg(test)]
mod netns;
mod rules;
mod show;
mod story;
mod transfer;

use std::{
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use ringmesh_lab::{EnterError, LabError, Privilege};

use crate::{
    failure::{Exit, Failure},
    output::Format,
    rights,
};

use self::{
    ground::{Nat, Terrain, Transport},
    mesh::{LOGS, Mesh},
    show::Show,
};

/// What `meshctl demo` is asked to do.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many nodes to start
    #[arg(long, env = "MESH_DEMO_NODES", value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u8).range(2..=50))]
    nodes: u8,
    /// How the nodes' packets enter and leave the kernel: auto, uring or poll
    #[arg(long, env = "MESH_IO", value_name = "BACK_END", default_value = "auto")]
    #[arg(value_parser = ["auto", "uring", "poll"])]
    io: String,
    /// The path that packets shall take; the demo fails if they take another [default: direct; relay with --nat symmetric]
    #[arg(long, env = "MESH_DEMO_TRANSPORT", value_name = "PATH", value_enum)]
    transport: Option<Transport>,
    /// What stands between each node and the others
    #[arg(long, env = "MESH_DEMO_NAT", value_name = "KIND", value_enum, default_value_t)]
    nat: Nat,
    /// Leaves the mesh running after the last step, and tells how to look into it, until Ctrl-C
    #[arg(long, env = "MESH_DEMO_KEEP")]
    keep: bool,
}

impl Args {
    fn terrain(&self) -> Terrain {
        Terrain { transport: self.transport.unwrap_or_else(|| self.nat.usual_path()), nat: self.nat }
    }
}

/// Runs the demonstration; fails if any step of it does.
///
/// Called before any thread is started: it continues in a sandbox, whose end takes everything with it that was started
/// inside. That is also what happens on Ctrl-C, or if this process is killed.
pub(crate) fn run(format: Format, args: Args) -> Result<(), Failure> {
    args.terrain().check()?;
    let privilege = ringmesh_lab::enter().map_err(no_sandbox)?;
    let mut show = Show::new(format, privilege, args.nodes, args.terrain());
    show.title(&title(&args, privilege))?;
    let told = tell(&mut show, &args);
    show.end()?;
    told.map_err(keep_logs)
}

fn tell(show: &mut Show, args: &Args) -> Result<(), Failure> {
    let mut mesh: Mesh = story::set_up(show, args)?;
    story::traffic(show, &mesh)?;
    // Whoever kills the coordinator kills its relay.
    if !args.terrain().transport.needs_relay() {
        story::without_coordinator(show, &mut mesh)?;
    }
    story::policy(show, &mesh)?;
    story::names(show, &mesh)?;
    story::removal(show, &mesh)?;
    if args.keep {
        story::keep(show, &mesh)?;
    }
    story::tear_down(show, mesh)
}

fn title(args: &Args, privilege: Privilege) -> String {
    let rights = match privilege {
        Privilege::Root => "as root",
        Privilege::UserNamespace => "without root, in a user namespace",
    };
    format!(
        "Ringmesh demo: a coordinator and {} nodes in network namespaces of their own, {rights}",
        args.nodes
    )
}

fn no_sandbox(error: EnterError) -> Failure {
    if let EnterError::Denied { denial, source, .. } = &error {
        return Failure::new(Exit::Permission, "this user may not create network namespaces here")
            .cause(denial.to_string())
            .cause(format!("the kernel says: {source}"))
            .attempt(rights::with_sudo());
    }
    anyhow::Error::new(error).into()
}

/// A failure of the lab, with its causes.
fn lab_failure(error: LabError) -> Failure {
    anyhow::Error::new(error).into()
}

/// Saves the daemons' logs from the sandbox, and says where they are.
fn keep_logs(failure: Failure) -> Failure {
    let own = std::process::id();
    let number = ringmesh_lab::outside_pid(own).unwrap_or(own);
    let kept = std::env::temp_dir().join(format!("ringmesh-demo-{number}"));
    match copy_folder(Path::new(LOGS), &kept) {
        Ok(()) => failure.attempt(format!("read the daemons' logs in {}", kept.display())),
        Err(error) => {
            failure.cause(format!("and their logs could not be kept in {}: {error}", kept.display()))
        }
    }
}

fn copy_folder(from: &Path, to: &PathBuf) -> std::io::Result<()> {
    std::fs::DirBuilder::new().mode(0o700).create(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
