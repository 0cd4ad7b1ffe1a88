//! `meshctl policy`: who may reach whom, as one file that is checked, planned, applied and taken back.

use std::{
    io::{self, BufRead, IsTerminal as _},
    time::Duration,
};

use ringmesh_controlplane::policy::FIRST;
use ringmesh_proto::admin::{
    ApplyPolicyRequest, ApplyPolicyResponse, GetPolicyRequest, ListPoliciesRequest, PlanPolicyRequest,
    RollbackPolicyRequest,
};

use super::{
    installed,
    policy_file::{NoText, PolicyFile},
};
use crate::{
    cli::NetworkName,
    connect::Connection,
    failure::{Exit, Failure},
    output::{
        self, Format,
        plan::{Applied, Plan, back_to},
        policy::{History, Policy, file_text},
        problems::{self, Checked, Problem},
    },
    remote::CoordinatorAt,
};

/// Changes of each kind that are shown before the question whether to apply them.
const ASKED_ABOUT: u32 = 50;

/// Which coordinator, and which of its networks.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct At {
    #[command(flatten)]
    network: NetworkName,
    #[command(flatten)]
    at: CoordinatorAt,
}

/// What can be done with policies.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Tells what is wrong with a policy file, by line and column; changes nothing
    Check {
        /// The policy file; - is standard input
        file: String,
        /// Asks no coordinator, so that names of members cannot be checked
        #[arg(long, env = "MESH_POLICY_OFFLINE")]
        offline: bool,
        #[command(flatten)]
        at: At,
    },
    /// Shows what would become allowed and what would stop; changes nothing
    Plan {
        /// The policy file; - is standard input
        file: String,
        /// How many changes of each kind to list
        #[arg(long, env = "MESH_POLICY_MOST", value_name = "N", default_value_t = 200)]
        #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
        most: u32,
        /// Ends with 10 if anything would change, with 0 if nothing would
        #[arg(long, env = "MESH_POLICY_DETAILED_EXITCODE")]
        detailed_exitcode: bool,
        #[command(flatten)]
        at: At,
    },
    /// Puts a policy file in force if nothing is wrong with it, and tells who has it installed.
    /// Ends with 8 if a node that is online has not installed it in time
    Apply {
        /// The policy file; - is standard input
        file: String,
        /// How long to wait until every node that is online has installed it: 10s, 500ms, 0; a bare number is seconds
        #[arg(long, env = "MESH_WAIT", value_name = "TIME", default_value = "10s", value_parser = installed::wait)]
        wait: Duration,
        /// Refuses if another policy than this one is in force [default: the one it was compared with]
        #[arg(long, env = "MESH_POLICY_BASE", value_name = "REVISION", value_parser = revision)]
        base: Option<u64>,
        /// What the history is to say about it, at most 200 bytes
        #[arg(
            long,
            env = "MESH_POLICY_COMMENT",
            value_name = "TEXT",
            default_value = "",
            hide_default_value = true
        )]
        comment: String,
        /// Does not ask; nobody is asked unless at a terminal
        #[arg(short, long, env = "MESH_YES")]
        yes: bool,
        #[command(flatten)]
        at: At,
    },
    /// Shows the policy in force, or an earlier one
    Show {
        /// Which one, by the revision that put it in force: r812
        #[arg(value_parser = revision)]
        revision: Option<u64>,
        /// Prints the file as it was applied, and nothing else
        #[arg(long, env = "MESH_POLICY_TEXT")]
        text: bool,
        #[command(flatten)]
        at: At,
    },
    /// Lists the policies applied so far, newest first
    History {
        /// How many to list [default: all that are kept]
        #[arg(
            long,
            env = "MESH_POLICY_HISTORY_MOST",
            value_name = "N",
            default_value_t = 0,
            hide_default_value = true
        )]
        most: u32,
        #[command(flatten)]
        at: At,
    },
    /// Applies an earlier policy again, by default the one before the one in force. That is a new policy, so to do it twice is to
    /// return: go further back by naming a revision
    Rollback {
        /// Which one, by the revision that put it in force: r812
        #[arg(value_parser = revision)]
        revision: Option<u64>,
        /// How long to wait until every node that is online has installed it: 10s, 500ms, 0; a bare number is seconds
        #[arg(long, env = "MESH_WAIT", value_name = "TIME", default_value = "10s", value_parser = installed::wait)]
        wait: Duration,
        /// Does not ask; nobody is asked unless at a terminal
        #[arg(short, long, env = "MESH_YES")]
        yes: bool,
        #[command(flatten)]
        at: At,
    },
}

/// A revision on the command line: `r812` as it is printed, or `812`.
pub(crate) fn revision(text: &str) -> Result<u64, String> {
    let number = text.strip_prefix('r').unwrap_or(text);
    let revision = number.parse().ok().filter(|revision| *revision > 0);
    revision.ok_or_else(|| {
        format!("`{text}` is not a revision: expected one as r812; see meshctl policy history")
    })
}

/// `meshctl policy ...`.
pub(crate) async fn run(format: Format, command: Command) -> Result<(), Failure> {
    match command {
        Command::Check { file, offline, at } => check(format, &file, offline, at).await,
        Command::Plan { file, most, detailed_exitcode, at } => {
            plan(format, &file, most, detailed_exitcode, at).await
        }
        Command::Apply { file, wait, base, comment, yes, at } => {
            let file = PolicyFile::read(&file)?;
            let coordinator = at.open().await?;
            Apply { coordinator, network: at.network.network, file, wait, base, comment, yes }
                .run(format)
                .await
        }
        Command::Show { revision, text, at } => show(format, revision, text, at).await,
        Command::History { most, at } => {
            let coordinator = at.open().await?;
            let mut policies = coordinator.policies();
            let request = ListPoliciesRequest { network: at.network.network, most };
            let response = coordinator.call("list the policies", policies.list_policies(request)).await?;
            output::result(format, &History::from(response))
        }
        Command::Rollback { revision, wait, yes, at } => rollback(format, revision, wait, yes, at).await,
    }
}

impl At {
    async fn open(&self) -> Result<Connection, Failure> {
        self.at.open().await
    }
}

async fn check(format: Format, path: &str, offline: bool, at: At) -> Result<(), Failure> {
    let file = match PolicyFile::read(path) {
        Ok(file) => file,
        Err(NoText::NotUtf8 { name, problem }) => {
            let file = PolicyFile { name, text: String::new() };
            return checked(format, file, !offline, None, vec![problem]);
        }
        Err(NoText::Unusable(failure)) => return Err(failure),
    };
    if offline {
        let problems = parse(&file.text);
        return checked(format, file, false, None, problems);
    }
    let coordinator = at.open().await.map_err(|failure| {
        failure.attempt_if(Exit::NotRunning, "without a coordinator: meshctl policy check --offline")
    })?;
    let plan = ask(&coordinator, at.network.network, &file, 1).await?;
    let counted = Some((plan.rules, plan.tests));
    checked(format, file, true, counted, plan.problems)
}

/// What the library says of a file, which knows no members.
fn parse(text: &str) -> Vec<Problem> {
    let problem = |problem: ringmesh_controlplane::policy::Problem| {
        Problem::new(problem.warning, problem.line, problem.column, problem.message)
    };
    match ringmesh_controlplane::policy::PolicyFile::parse(text) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.into_iter().map(problem).collect(),
    }
}

/// Writes the result of a check, and judges it.
fn checked(
    format: Format,
    file: PolicyFile,
    members_checked: bool,
    counted: Option<(u32, u32)>,
    problems: Vec<Problem>,
) -> Result<(), Failure> {
    let ok = !problems.iter().any(Problem::is_error);
    let counted = counted.filter(|_| ok);
    let checked = Checked {
        file: file.name,
        ok,
        members_checked,
        rules: counted.map(|(rules, _)| rules),
        tests: counted.map(|(_, tests)| tests),
        problems,
        source: file.text,
    };
    output::result(format, &checked)?;
    if checked.ok { Ok(()) } else { Err(unusable(&checked.file, &checked.problems)) }
}

/// That a policy file cannot be applied; its problems are told apart from this.
fn unusable(name: &str, problems: &[Problem]) -> Failure {
    Failure::new(Exit::Usage, format!("{name} cannot be applied: {}", problems::count(problems)))
}

/// Asks what a file would change, and what is wrong with it.
async fn ask(
    coordinator: &Connection,
    network: String,
    file: &PolicyFile,
    most: u32,
) -> Result<Plan, Failure> {
    let request = PlanPolicyRequest { network, text: file.text.clone(), most };
    let doing = format!("plan {}", file.name);
    let mut policies = coordinator.policies();
    Ok(Plan::from(coordinator.call(&doing, policies.plan_policy(request)).await?))
}

/// Tells the problems of a file beside the result.
fn tell(file: &PolicyFile, problems: &[Problem]) {
    if !problems.is_empty() {
        output::note(problems::text(problems, &file.name, &file.text).trim_end());
    }
}

async fn plan(format: Format, path: &str, most: u32, detailed_exitcode: bool, at: At) -> Result<(), Failure> {
    let file = PolicyFile::read(path)?;
    let coordinator = at.open().await?;
    let plan = ask(&coordinator, at.network.network, &file, most).await?;
    tell(&file, &plan.problems);
    // Programs find the problems in the plan itself.
    if format == Format::Json || !plan.is_refused() {
        output::result(format, &plan)?;
    }
    if plan.is_refused() {
        return Err(unusable(&file.name, &plan.problems));
    }
    if detailed_exitcode && plan.changes() { Err(Failure::told(Exit::Changes)) } else { Ok(()) }
}

/// A policy about to be applied.
struct Apply {
    coordinator: Connection,
    network: String,
    file: PolicyFile,
    wait: Duration,
    base: Option<u64>,
    comment: String,
    yes: bool,
}

impl Apply {
    async fn run(self, format: Format) -> Result<(), Failure> {
        let plan = ask(&self.coordinator, self.network.clone(), &self.file, ASKED_ABOUT).await?;
        tell(&self.file, &plan.problems);
        if plan.is_refused() {
            return Err(unusable(&self.file.name, &plan.problems).cause("the policy in force stays as it is"));
        }
        if !self.yes {
            confirm(&plan, "apply this?")?;
        }
        let request = ApplyPolicyRequest {
            network: self.network.clone(),
            text: self.file.text,
            // What was shown is what is applied.
            base_revision: self.base.unwrap_or(plan.base_revision),
            wait_ms: installed::first(self.wait),
            comment: self.comment,
            ..Default::default()
        };
        let mut policies = self.coordinator.policies();
        let response = self.coordinator.call("apply the policy", policies.apply_policy(request)).await;
        finish(format, &self.coordinator, &self.network, self.wait, response?, &plan, None).await
    }
}

/// Shows what would change to somebody at a terminal, and fails unless that is confirmed. What changes nothing is not asked about.
fn confirm(plan: &Plan, question: &str) -> Result<(), Failure> {
    if !plan.changes() || !is_watched() {
        return Ok(());
    }
    output::note(format!("{}{}", plan.changes_text(""), plan.totals()));
    output::note(format!("{question} [y/N]"));
    if is_agreed(io::stdin().lock()) {
        return Ok(());
    }
    Err(Failure::new(Exit::General, "nothing was applied: it was not confirmed"))
}

/// Whether somebody is at a terminal who can be asked.
fn is_watched() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Whether the answer is yes; none at all is not.
fn is_agreed(mut input: impl BufRead) -> bool {
    let mut answer = String::new();
    input.read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes" | "Yes" | "YES")
}

/// Waits until an applied policy is installed, tells how far it got, and judges that.
async fn finish(
    format: Format,
    coordinator: &Connection,
    network: &str,
    wait: Duration,
    response: ApplyPolicyResponse,
    plan: &Plan,
    back_to: Option<u64>,
) -> Result<(), Failure> {
    let mut applied = Applied::new(response, plan, back_to);
    let waited = match &mut applied.installation {
        Some(installation) if !wait.is_zero() => {
            installed::rest(coordinator, network, wait, installation).await
        }
        Some(_) | None => Ok(()),
    };
    if wait.is_zero() {
        applied.installation = None;
    }
    output::result(format, &applied)?;
    waited?;
    match &applied.installation {
        Some(installation) => {
            let change = format!("r{} is in force", applied.revision);
            installed::verdict(&change, wait, installation)
        }
        None => Ok(()),
    }
}

async fn show(format: Format, revision: Option<u64>, text: bool, at: At) -> Result<(), Failure> {
    let coordinator = at.open().await?;
    let mut policies = coordinator.policies();
    let request = GetPolicyRequest { network: at.network.network, revision: revision.unwrap_or_default() };
    let response = coordinator.call("show the policy", policies.get_policy(request)).await?;
    let policy = Policy::from(response);
    if text { output::write_result(&file_text(&policy)) } else { output::result(format, &policy) }
}

/// A policy to go back to.
struct Earlier {
    /// 0: the network's first, which nobody applied.
    revision: u64,
    file: PolicyFile,
}

impl Earlier {
    /// Finds the one of `revision`, or the one before the one in force.
    async fn find(coordinator: &Connection, network: &str, revision: Option<u64>) -> Result<Self, Failure> {
        const DOING: &str = "find the policy to go back to";
        let mut policies = coordinator.policies();
        let revision = match revision {
            Some(revision) => revision,
            None => {
                let request = ListPoliciesRequest { network: network.to_owned(), most: 2 };
                let response = coordinator.call(DOING, policies.list_policies(request)).await?;
                response.policies.get(1).map_or(0, |version| version.revision)
            }
        };
        let text = if revision == 0 {
            FIRST.to_owned()
        } else {
            let request = GetPolicyRequest { network: network.to_owned(), revision };
            let policy = Policy::from(coordinator.call(DOING, policies.get_policy(request)).await?);
            policy.file().to_owned()
        };
        Ok(Self { revision, file: PolicyFile { name: back_to(revision), text } })
    }
}

async fn rollback(
    format: Format,
    revision: Option<u64>,
    wait: Duration,
    yes: bool,
    at: At,
) -> Result<(), Failure> {
    let coordinator = at.open().await?;
    let network = at.network.network;
    let earlier = Earlier::find(&coordinator, &network, revision).await?;
    let plan = ask(&coordinator, network.clone(), &earlier.file, ASKED_ABOUT).await?;
    // One that means nothing any more is refused below, by who knows why.
    if !plan.is_refused() && !yes {
        confirm(&plan, &format!("go back to {}?", back_to(earlier.revision)))?;
    }
    let request = RollbackPolicyRequest {
        network: network.clone(),
        // What was shown is what is taken, or nothing, if somebody applied another one meanwhile.
        revision: earlier.revision,
        base_revision: plan.base_revision,
        wait_ms: installed::first(wait),
        ..Default::default()
    };
    let mut policies = coordinator.policies();
    let response = coordinator.call("take back the policy", policies.rollback_policy(request)).await;
    finish(format, &coordinator, &network, wait, response?, &plan, Some(earlier.revision)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_read_as_it_is_printed() {
        assert_eq!((revision("r812"), revision("812")), (Ok(812), Ok(812)));
        for text in ["", "r", "r0", "-1", "rr1", "policy.toml", "99999999999999999999"] {
            assert!(revision(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_a_yes_is_a_yes() {
        for yes in ["y\n", "yes\n", " Y \n", "yes"] {
            assert!(is_agreed(yes.as_bytes()), "{yes}");
        }
        for no in ["", "\n", "n\n", "no\n", "yesterday\n", "\u{ff}"] {
            assert!(!is_agreed(no.as_bytes()), "{no}");
        }
        assert!(!is_agreed(&b"\xff\n"[..]));
    }
}
