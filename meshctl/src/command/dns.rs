//! `meshctl dns`: how mesh names are answered on this machine.

use ringmesh_proto::local::{DnsQueryRequest, DnsStatusRequest};

use crate::{
    cli::NodeSocket,
    failure::{Exit, Failure},
    output::{
        self, Format,
        dns::{Answer, Status},
    },
};

/// What can be asked about names.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Shows where names are answered, who is asked for others, and how often
    Status {
        #[command(flatten)]
        socket: NodeSocket,
    },
    /// Asks the node's resolver for a name, as this machine would
    Query {
        /// The name: web1, web1.mesh, or an address with the type PTR
        name: String,
        /// The type of record: A, AAAA, PTR, ... [default: A and AAAA]
        #[arg(value_name = "TYPE", default_value = "", hide_default_value = true)]
        kind: String,
        #[command(flatten)]
        socket: NodeSocket,
    },
}

/// `meshctl dns ...`.
pub(crate) async fn run(format: Format, command: Command) -> Result<(), Failure> {
    match command {
        Command::Status { socket } => {
            let node = socket.connect().await?;
            let response = node
                .call("show how names are answered", node.local().dns_status(DnsStatusRequest {}))
                .await?;
            output::result(format, &Status::from(response))
        }
        Command::Query { name, kind, socket } => {
            let node = socket.connect().await?;
            let doing = format!("resolve {name}");
            let request = DnsQueryRequest { name: name.clone(), r#type: kind.to_ascii_uppercase() };
            let response = node.call(&doing, node.local().dns_query(request)).await?;
            let answer = Answer::new(name, response);
            output::result(format, &answer)?;
            verdict(&answer)
        }
    }
}

/// That there is no such name or record is an answer; that nobody could tell is none.
fn verdict(answer: &Answer) -> Result<(), Failure> {
    if answer.is_answered() {
        return Ok(());
    }
    Err(Failure::new(Exit::Unreachable, format!("{} could not be resolved", answer.name))
        .cause(format!("the answer was {}", answer.code))
        .attempt("meshctl dns status, which tells who is asked for names outside the mesh"))
}

#[cfg(test)]
mod tests {
    use ringmesh_proto::local::DnsQueryResponse;

    use super::*;

    #[test]
    fn a_name_that_is_not_there_is_answered_and_one_that_nobody_knows_about_is_not() {
        let verdict = |code: &str| {
            verdict(&Answer::new(
                "web1".to_owned(),
                DnsQueryResponse { code: code.to_owned(), ..Default::default() },
            ))
        };
        assert_eq!(verdict("NOERROR"), Ok(()));
        assert_eq!(verdict("NXDOMAIN"), Ok(()));
        assert_eq!(verdict("SERVFAIL").unwrap_err().exit(), Exit::Unreachable);
        assert_eq!(verdict("REFUSED").unwrap_err().exit(), Exit::Unreachable);
    }
}
