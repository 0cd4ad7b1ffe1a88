//! Whose TLS handshake is computed next. It is the dearest thing that a stranger can ask for, so it goes by turns: first those whose
//! source has fewest connections open, and of those the newest, which has the best chance that somebody still waits for it.
//!
//! In the order of arrival everybody would wait behind a flood, for as long as it takes to work it off.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::sync::oneshot;

use super::strangers::lock;

/// How many handshakes are computed at once.
#[derive(Debug)]
pub(super) struct Turns {
    line: Mutex<Line>,
}

#[derive(Debug)]
struct Line {
    free: usize,
    last: u64,
    /// As long as there are connections, at most.
    waiting: BTreeMap<(usize, Reverse<u64>), oneshot::Sender<Turn>>,
}

/// The right to compute, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn(Option<Arc<Turns>>);

impl Turns {
    pub(super) fn new(at_once: usize) -> Arc<Self> {
        Arc::new(Self { line: Mutex::new(Line { free: at_once.max(1), last: 0, waiting: BTreeMap::new() }) })
    }

    /// Waits for a turn; `open` says how many connections the asker's source has open.
    pub(super) async fn take(self: &Arc<Self>, open: usize) -> Turn {
        let turn = {
            let mut line = lock(&self.line);
            if line.free > 0 {
                line.free -= 1;
                return Turn(Some(self.clone()));
            }
            let (sender, receiver) = oneshot::channel();
            line.last = line.last.wrapping_add(1);
            let number = line.last;
            line.waiting.insert((open, Reverse(number)), sender);
            receiver
        };
        // The sender is dropped with this very value only.
        turn.await.unwrap_or(Turn(None))
    }

    /// Gives a turn to the next one who still waits.
    fn pass(self: Arc<Self>) {
        loop {
            let next = {
                let mut line = lock(&self.line);
                match line.waiting.pop_first() {
                    Some((_, next)) => next,
                    None => {
                        line.free += 1;
                        return;
                    }
                }
            };
            match next.send(Turn(Some(self.clone()))) {
                Ok(()) => return,
                // It gave up. Without the turn's own drop, which would come here again for each who gave up.
                Err(mut turn) => drop(turn.0.take()),
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.pass();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::{Pin, pin},
        task::Poll,
    };

    use super::*;

    async fn waits(turn: &mut Pin<&mut impl Future<Output = Turn>>) -> bool {
        std::future::poll_fn(|cx| Poll::Ready(turn.as_mut().poll(cx).is_pending())).await
    }

    #[tokio::test]
    async fn the_next_turn_is_of_who_has_fewest_connections_and_came_last() {
        let turns = Turns::new(1);
        let running = turns.take(1).await;
        let (mut many, mut first, mut second) =
            (pin!(turns.take(5)), pin!(turns.take(1)), pin!(turns.take(1)));
        assert!(waits(&mut many).await && waits(&mut first).await && waits(&mut second).await);
        drop(running);
        assert!(waits(&mut many).await && waits(&mut first).await);
        let running = second.await;
        drop(running);
        assert!(waits(&mut many).await);
        let running = first.await;
        drop(running);
        many.await;
    }

    #[tokio::test]
    async fn who_gave_up_gets_no_turn_and_keeps_nobody_from_one() {
        let turns = Turns::new(2);
        let running = (turns.take(1).await, turns.take(1).await);
        for _ in 0..1000 {
            assert!(waits(&mut pin!(turns.take(0))).await);
        }
        let mut waiting = pin!(turns.take(9));
        let mut told = pin!(turns.take(8));
        assert!(waits(&mut waiting).await && waits(&mut told).await);
        drop(running.0);
        // Told, and gone before it heard of it.
        told.set(turns.take(8));
        drop(running.1);
        drop(waiting.await);
        drop(told.await);
        assert_eq!(lock(&turns.line).free, 2);
        assert!(lock(&turns.line).waiting.is_empty());
    }
}
