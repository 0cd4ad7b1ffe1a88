//! Nothing is allocated for a stray.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;

use ringmesh_io::{Stray, SuperPacket, Train, Waker, strays};

thread_local! {
    /// Allocations of this thread while they are counted.
    static COUNT: Cell<Option<u64>> = const { Cell::new(None) };
}

struct Counting;

// SAFETY: hands everything to the system's allocator; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get().map(|count| count + 1)));
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from the system's allocator, by the function above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_million_strays_allocate_nothing() {
    let wakers = [Waker::new().expect("a waker"), Waker::new().expect("a waker")];
    let mut workers = strays(&wakers);
    let [first, second] = workers.as_mut_slice() else { panic!("two of them") };
    let to_second = &mut first.to[1];
    let mut bytes = vec![7; 3000];
    let from = SocketAddr::from(([192, 0, 2, 1], 7));
    let (mut bytes_seen, mut refused) = (0, 0);
    COUNT.set(Some(0));
    for _ in 0..2000 {
        // More than there is room for, so that being full is counted as well.
        for _ in 0..250 {
            refused += u64::from(to_second.push(Stray::Packet(SuperPacket::single(&bytes[..1400]))).is_err());
            let train = Train::new(&mut bytes);
            refused += u64::from(to_second.push(Stray::Datagrams { train, from }).is_err());
        }
        to_second.wake();
        while second.receiver.peek().is_some() {
            second.receiver.pop(|stray| {
                bytes_seen += match stray {
                    Stray::Packet(packet) => packet.whole().len(),
                    Stray::Datagrams { mut train, .. } => train.bytes().len(),
                };
            });
        }
    }
    assert_eq!(COUNT.take(), Some(0));
    assert!(refused > 0, "the bound was not reached");
    assert!(bytes_seen as u64 > (1_000_000 - refused) * 1400);
}

#[test]
fn the_counter_counts() {
    COUNT.set(Some(0));
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(COUNT.take(), Some(1));
}
