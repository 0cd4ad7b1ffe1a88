//! `meshctl filter`: what this node's filter lets pass, and what its owner denies beyond the policy.

use ringmesh_proto::local::{AddDenialRequest, FilterRequest, RemoveDenialRequest};

use crate::{
    cli::{NodeSocket, seconds},
    failure::{Exit, Failure},
    output::{
        self, Format,
        filter::{Added, Denial, Filter, Removed},
    },
};

/// What can be done with the filter of this node.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Shows the rules about this node with their hits, its denials, flows, and drops by reason
    List {
        #[command(flatten)]
        socket: NodeSocket,
    },
    /// Denies something on this node that the policy allows; flows that exist are cut
    Add {
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        socket: NodeSocket,
    },
    /// Removes a denial
    Remove {
        /// The denial's number, as listed
        #[arg(value_parser = denial)]
        id: u32,
        #[command(flatten)]
        socket: NodeSocket,
    },
}

/// What is denied; all of it together, and what is not said is any. To say nothing would cut the node off.
#[derive(Debug, clap::Args)]
pub(crate) struct What {
    /// Everything: nobody reaches this node, and it reaches nobody
    #[arg(long, env = "MESH_FILTER_ALL", conflicts_with_all = ["inward", "outward", "peer", "protocol", "ports"])]
    all: bool,
    /// Flows that others begin
    #[arg(long = "in", env = "MESH_FILTER_IN", conflicts_with = "outward")]
    inward: bool,
    /// Flows that this node begins
    #[arg(long = "out", env = "MESH_FILTER_OUT")]
    outward: bool,
    /// With whom: its name, one of its addresses, or its id
    #[arg(long, env = "MESH_FILTER_PEER", value_name = "NODE")]
    peer: Option<String>,
    /// By which protocol: tcp, udp, icmp or a number
    #[arg(long, env = "MESH_FILTER_PROTOCOL", value_name = "PROTOCOL", value_parser = protocol)]
    protocol: Option<String>,
    /// To which port or ports: 443, 8000-8080; may be repeated. Only with tcp and udp
    #[arg(long = "port", env = "MESH_FILTER_PORTS", value_name = "PORT", value_delimiter = ',', value_parser = ports)]
    ports: Vec<String>,
    /// For how long: 90s, 15m, 24h, 7d; a bare number is seconds [default: until it is removed]
    #[arg(long, env = "MESH_FILTER_TTL", value_name = "TIME", value_parser = seconds)]
    ttl: Option<u64>,
}

/// A protocol on the command line, as daemons spell it.
pub(crate) fn protocol(text: &str) -> Result<String, String> {
    let word = text.to_ascii_lowercase();
    let known = matches!(word.as_str(), "tcp" | "udp" | "icmp") || word.parse::<u8>().is_ok();
    if known {
        Ok(word)
    } else {
        Err(format!("`{text}` is not a protocol: expected tcp, udp, icmp or a number up to 255"))
    }
}

/// Whether a protocol has ports.
pub(crate) fn has_ports(protocol: &str) -> bool {
    matches!(protocol, "tcp" | "udp" | "6" | "17")
}

/// The number of a denial on the command line.
fn denial(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number
        .ok_or_else(|| format!("`{text}` is not the number of a denial; see them with: meshctl filter list"))
}

/// A port or a range of them.
fn ports(text: &str) -> Result<String, String> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let valid = match text.split_once('-') {
        None => port(text).is_some(),
        Some((first, last)) => port(first).zip(port(last)).is_some_and(|(first, last)| first <= last),
    };
    let expected = || format!("`{text}` is not a port: expected 1 to 65535, or a range as 8000-8080");
    if valid { Ok(text.to_owned()) } else { Err(expected()) }
}

impl What {
    fn request(self) -> Result<AddDenialRequest, Failure> {
        if !self.ports.is_empty() && !self.protocol.as_deref().is_some_and(has_ports) {
            return Err(Failure::new(Exit::Usage, "only tcp and udp have ports")
                .attempt("--protocol tcp or --protocol udp with --port"));
        }
        let nothing = !self.inward && !self.outward && self.peer.is_none() && self.protocol.is_none();
        if nothing && !self.all {
            return Err(Failure::new(Exit::Usage, "nothing says what to deny")
                .attempt("one or more of --in, --out, --peer, --protocol and --port; or --all, which cuts this node off"));
        }
        let direction = match (self.inward, self.outward) {
            (true, _) => "in",
            (false, true) => "out",
            (false, false) => "both",
        };
        Ok(AddDenialRequest {
            direction: direction.to_owned(),
            peer: self.peer.unwrap_or_default(),
            protocol: self.protocol.unwrap_or_default(),
            ports: self.ports.join(","),
            ttl_seconds: self.ttl.unwrap_or_default(),
        })
    }
}

/// `meshctl filter ...`.
pub(crate) async fn run(format: Format, command: Command) -> Result<(), Failure> {
    match command {
        Command::List { socket } => {
            let node = socket.connect().await?;
            let response = node.call("show the filter", node.local().filter(FilterRequest {})).await?;
            output::result(format, &Filter::from(response))
        }
        Command::Add { what, socket } => {
            let request = what.request()?;
            let node = socket.connect().await?;
            let response = node.call("add the denial", node.local().add_denial(request)).await?;
            output::result(format, &Added { denial: Denial::from(response.denial.unwrap_or_default()) })
        }
        Command::Remove { id, socket } => {
            let node = socket.connect().await?;
            let request = RemoveDenialRequest { id };
            let doing = format!("remove denial {id}");
            node.call(&doing, node.local().remove_denial(request)).await?;
            let left = node.call("show the filter", node.local().filter(FilterRequest {})).await?.denials;
            let remaining = u64::try_from(left.len()).unwrap_or(u64::MAX);
            output::result(format, &Removed { id, remaining })
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches as _;

    use super::*;
    use crate::cli::{Cli, Command as Asked};

    fn request(words: &str) -> Result<AddDenialRequest, String> {
        let words = ["meshctl", "filter", "add"].into_iter().chain(words.split_whitespace());
        let matches = Cli::grammar().try_get_matches_from(words).map_err(|error| error.to_string())?;
        let cli = Cli::from_arg_matches(&matches).map_err(|error| error.to_string())?;
        let Asked::Filter(Command::Add { what, .. }) = cli.command else { panic!("another command") };
        what.request().map_err(|failure| failure.to_string())
    }

    #[test]
    fn what_is_not_said_is_any() {
        let any = AddDenialRequest { direction: "both".to_owned(), ..AddDenialRequest::default() };
        assert_eq!(request("--all"), Ok(any.clone()));
        let narrow = AddDenialRequest {
            direction: "in".to_owned(),
            peer: "bob".to_owned(),
            protocol: "tcp".to_owned(),
            ports: "22,8000-8080,443".to_owned(),
            ttl_seconds: 3600,
        };
        let words = "--in --peer bob --protocol TCP --port 22,8000-8080 --port 443 --ttl 1h";
        assert_eq!(request(words), Ok(narrow));
        assert_eq!(request("--out"), Ok(AddDenialRequest { direction: "out".to_owned(), ..any }));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (words, word) in [
            ("", "nothing says what to deny"),
            ("--ttl 1h", "nothing says what to deny"),
            ("--all --in", "--all"),
            ("--in --out", "--out"),
            ("--port 22", "only tcp and udp"),
            ("--protocol icmp --port 22", "only tcp and udp"),
            ("--protocol sctp", "`sctp`"),
            ("--protocol 256", "`256`"),
            ("--protocol tcp --port 0", "`0`"),
            ("--protocol tcp --port 65536", "`65536`"),
            ("--protocol tcp --port 9-8", "`9-8`"),
            ("--ttl 0s", "0s"),
        ] {
            let message = request(words).unwrap_err();
            assert!(message.contains(word), "{words}: {message}");
        }
    }
}
