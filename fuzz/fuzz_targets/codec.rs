//! Every encoding that travels: what is read is written, and then read as the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use minicbor::{Decode, Encode};
use raft::{Configuration, HardState, Message, Payload, SnapshotMeta};
use replica::{Formation, Holds, NodeStatus, Operation, Reply, Request, Store, Write};

/// What is read is written as bytes that are read as the same.
fn round_trip<T>(bytes: &[u8])
where
    T: for<'c> Decode<'c, ()> + Encode<()>,
{
    let Ok(value) = minicbor::decode::<T>(bytes) else {
        return;
    };
    let written = minicbor::to_vec(&value).expect("memory takes every byte");
    let again: T = minicbor::decode(&written).expect("what was written is read");
    // By bytes: a metric that is no number differs from itself.
    let rewritten = minicbor::to_vec(&again).expect("memory takes every byte");
    assert_eq!(rewritten, written);
}

/// The same, and equal as a value.
fn equal_round_trip<T>(bytes: &[u8])
where
    T: for<'c> Decode<'c, ()> + Encode<()> + PartialEq + std::fmt::Debug,
{
    if let Ok(value) = minicbor::decode::<T>(bytes) {
        let written = minicbor::to_vec(&value).expect("memory takes every byte");
        let again: T = minicbor::decode(&written).expect("what was written is read");
        assert_eq!(again, value);
    }
    round_trip::<T>(bytes);
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else {
        return;
    };
    match kind % 14 {
        0 | 1 => fuzz::body_round_trip(bytes),
        2 => equal_round_trip::<Message>(bytes),
        3 => equal_round_trip::<Payload>(bytes),
        4 => equal_round_trip::<Configuration>(bytes),
        5 => equal_round_trip::<SnapshotMeta>(bytes),
        6 => equal_round_trip::<HardState>(bytes),
        7 => equal_round_trip::<Holds>(bytes),
        8 => equal_round_trip::<Formation>(bytes),
        9 => equal_round_trip::<Request>(bytes),
        10 => equal_round_trip::<Reply>(bytes),
        11 => {
            equal_round_trip::<Operation>(bytes);
            equal_round_trip::<Write>(bytes);
        }
        12 => round_trip::<NodeStatus>(bytes),
        // A leader's snapshot, as its receivers restore it.
        _ => {
            if let Ok(store) = Store::restore(bytes) {
                for (key, value) in store.iter() {
                    assert_eq!(store.get(key).value.expect("iterated").0, *value);
                }
            }
        }
    }
});
