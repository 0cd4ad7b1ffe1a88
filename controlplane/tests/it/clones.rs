//! Two machines with one identity: a cloned disk.

use std::fs;

use ringmesh_proto::{admin, control::Reason};

use crate::{
    client::{TestNode, reason},
    crash,
    harness::{Operator, config},
};

#[tokio::test(flavor = "multi_thread")]
async fn the_log_names_a_node_whose_connections_take_over_from_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let (_process, _) = crash::start_logged(directory.path(), &log).await;
    let mut operator = Operator::connect(&config(directory.path()).admin_socket).await;
    let token = operator.token(admin::CreateTokenRequest { reusable: true, ..Default::default() }).await;
    let told = || {
        let text = fs::read_to_string(&log).unwrap();
        text.lines().filter(|line| line.contains("node_taken_over")).map(str::to_owned).collect::<Vec<_>>()
    };

    // One that is there once, and comes back three times after it went.
    let mut single = TestNode::new("single");
    single.join(&token).await.unwrap();
    for _ in 0..4 {
        let gone = single.sync().await.unwrap();
        drop(gone);
        while operator.node("single").await.online {
            tokio::task::yield_now().await;
        }
    }

    let mut clone = TestNode::new("clone");
    clone.join(&token).await.unwrap();
    let mut former = clone.sync().await.unwrap();
    for takeover in 1..=10 {
        let stream = clone.sync().await.unwrap();
        let refused = loop {
            match former.next().await {
                Ok(_) => {}
                Err(refused) => break refused,
            }
        };
        assert_eq!(reason(&refused), Reason::Conflict, "{refused}");
        // What was written is there before the welcome.
        assert_eq!(told().len(), usize::from(takeover >= 3), "{takeover}: {:?}", told());
        former = stream;
    }
    let line = told().remove(0);
    let id = operator.node("clone").await.id;
    assert!(line.contains(" WARN ") && line.contains(&id) && line.contains("times=3"), "{line}");
}
