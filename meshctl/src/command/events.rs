//! `meshctl events`: what happened, and what happens.

use std::{collections::VecDeque, time::Duration};

use ringmesh_controlplane::network::event_names;
use ringmesh_proto::{
    admin::{ListEventsRequest, WatchEventsRequest, WatchEventsResponse},
    control::Reason,
};
use tonic::{Code, Status, Streaming};

use super::policy::revision;
use crate::{
    cli::NetworkName,
    connect::Connection,
    failure::{Exit, Failure},
    output::{self, Format, events::Event},
    refusal,
    remote::CoordinatorAt,
};

/// How many are asked for at a time.
const PAGE: u32 = 1000;
/// How many are listed where no revision is named.
const NEWEST: usize = 50;
/// A coordinator that says nothing for that long has gone; it gives a sign of life every 20 s.
const SILENCE: Duration = Duration::from_secs(60);
/// Pauses before a coordinator that went away is asked again: twice as long each time, up to the last.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(10)];

/// `meshctl events`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Goes on with what happens from now on, until it is interrupted; a coordinator that goes away is waited for
    #[arg(short, long, env = "MESH_EVENTS_FOLLOW")]
    follow: bool,
    /// Only what came after this revision: r812 [default: the newest 50; with --follow, what comes from now on]
    #[arg(long, env = "MESH_EVENTS_AFTER", value_name = "REVISION", value_parser = revision)]
    after: Option<u64>,
    /// Only events of this name; may be given several times
    #[arg(long = "name", env = "MESH_EVENTS_NAMES", value_name = "NAME", value_delimiter = ',')]
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(event_names()), hide_possible_values = true)]
    names: Vec<String>,
    #[command(flatten)]
    network: NetworkName,
    #[command(flatten)]
    at: CoordinatorAt,
}

/// `meshctl events`.
pub(crate) async fn run(format: Format, args: Args) -> Result<(), Failure> {
    let coordinator = args.at.open().await?;
    if args.follow {
        Follow::of(format, args).run(coordinator).await
    } else {
        list(format, &args, &coordinator).await
    }
}

async fn list(format: Format, args: &Args, coordinator: &Connection) -> Result<(), Failure> {
    let mut found = VecDeque::new();
    let mut after_revision = args.after.unwrap_or_default();
    let mut events = coordinator.events();
    loop {
        let request = ListEventsRequest { network: args.network.network.clone(), after_revision, most: PAGE };
        let page = coordinator.call("list the events", events.list_events(request)).await?;
        let wanted =
            page.events.into_iter().filter(|event| args.names.is_empty() || args.names.contains(&event.name));
        for event in wanted.map(Event::from) {
            if args.after.is_some() {
                if !output::events::write(format, &event)? {
                    return Ok(());
                }
            } else {
                // They come oldest first, and the newest are asked for.
                found.push_back(event);
                if found.len() > NEWEST {
                    found.pop_front();
                }
            }
        }
        if !page.more {
            break;
        }
        after_revision = page.revision;
    }
    for event in &found {
        if !output::events::write(format, event)? {
            break;
        }
    }
    Ok(())
}

/// Why a watch ended.
enum End {
    /// Nobody reads what is written.
    Unread,
    /// The coordinator went away, or put us off: it may come back.
    Away(String),
    /// It will not be otherwise the next time.
    Failed(Failure),
}

/// Events as they come, over all that may happen to a connection.
struct Follow {
    format: Format,
    args: Args,
    /// Everything up to here was told; 0: nothing yet.
    place: u64,
    /// Whether it was told that the coordinator is away.
    missed: bool,
}

impl Follow {
    fn of(format: Format, args: Args) -> Self {
        let place = args.after.unwrap_or_default();
        Self { format, args, place, missed: false }
    }

    async fn run(mut self, coordinator: Connection) -> Result<(), Failure> {
        let mut coordinator = Some(coordinator);
        let mut pause = PAUSES[0];
        loop {
            let end = match coordinator.take() {
                Some(coordinator) => self.watch(&coordinator, &mut pause).await,
                None => match self.args.at.open().await {
                    Ok(coordinator) => self.watch(&coordinator, &mut pause).await,
                    Err(failure)
                        if matches!(failure.exit(), Exit::NotRunning | Exit::Unreachable | Exit::Timeout) =>
                    {
                        End::Away(failure.error().to_owned())
                    }
                    Err(failure) => End::Failed(failure),
                },
            };
            match end {
                End::Unread => return Ok(()),
                End::Failed(failure) => return Err(failure),
                // Who never answered will hardly do so later; what was told before nobody is to hear again.
                End::Away(why) if self.place == 0 => {
                    return Err(Failure::new(Exit::Unreachable, "cannot watch the events").cause(why));
                }
                End::Away(why) => {
                    if !std::mem::replace(&mut self.missed, true) {
                        output::note(format!(
                            "lost the coordinator ({why}); going on after r{} once it is back",
                            self.place
                        ));
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES[1]);
                }
            }
        }
    }

    async fn watch(&mut self, coordinator: &Connection, pause: &mut Duration) -> End {
        const DOING: &str = "watch the events";
        let request = WatchEventsRequest {
            network: self.args.network.network.clone(),
            after_revision: self.place,
            names: self.args.names.clone(),
        };
        let mut events = coordinator.events();
        let told = match coordinator.call_raw(events.watch_events(request)).await {
            Ok(told) => told,
            Err(status) => return ended(coordinator, DOING, &status),
        };
        match self.read(told, pause).await {
            Ok(end) => end,
            Err(status) => ended(coordinator, DOING, &status),
        }
    }

    /// Writes what is told until that ends.
    async fn read(
        &mut self,
        mut told: Streaming<WatchEventsResponse>,
        pause: &mut Duration,
    ) -> Result<End, Status> {
        loop {
            let Ok(message) = tokio::time::timeout(SILENCE, told.message()).await else {
                return Ok(End::Away(format!("silent for {} s", SILENCE.as_secs())));
            };
            let Some(message) = message? else { return Ok(End::Away("the stream ended".into())) };
            for event in message.events {
                match output::events::write(self.format, &event.into()) {
                    Ok(true) => {}
                    Ok(false) => return Ok(End::Unread),
                    Err(failure) => return Ok(End::Failed(failure)),
                }
            }
            self.place = message.revision;
            *pause = PAUSES[0];
            self.missed = false;
        }
    }
}

/// Whether it helps to come back.
fn ended(coordinator: &Connection, doing: &str, status: &Status) -> End {
    let reason = refusal::reason_of(status);
    let may_come_back = match reason {
        Some(reason) => matches!(reason, Reason::Busy | Reason::NoReply),
        None => matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded
        ),
    };
    if may_come_back {
        End::Away(status.message().to_owned())
    } else {
        End::Failed(coordinator.refused(doing, status))
    }
}
