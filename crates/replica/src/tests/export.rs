//! A node gives a copy of its state to whoever asks, one copy at a time.

use std::time::Duration;

use bytes::Bytes;
use raft::{Durable, Time};

use super::world::{World, name};
use crate::requests::Token;
use crate::saved::{CHUNK, Download};
use crate::wire::{Body, ChunkRequest, Export, Holds, Operation, Save, SaveRequest, Write, to_vec};
use crate::{Input, Replica, StartError};

/// A cluster with about `bytes` bytes of state, and a member that asks.
fn world(bytes: usize) -> World {
    let mut world = World::formed(&["a", "b", "c"]);
    for n in 0..bytes / 1_000 {
        write(&mut world, n as u64, 1_000);
    }
    world.admit_member("z");
    world
}

/// What `b` answers to one body.
fn ask(world: &mut World, body: &Body) -> Option<Body> {
    let said = world.say("b", body).published;
    let member = world.member.as_mut().expect("a member");
    let mut heard = Vec::new();
    for publish in said.iter().filter(|publish| !publish.retain) {
        let topic = member.endpoint.parse(&publish.topic).expect("one of ours");
        let received = member.endpoint.receive(&topic, &publish.payload, world.now);
        let incoming = received.into_iter().flatten();
        heard.extend(incoming.map(|incoming| incoming.body));
    }
    heard.pop()
}

fn save(world: &mut World, revision: u64) -> Option<Save> {
    match ask(world, &Body::SaveRequest(SaveRequest { revision })) {
        Some(Body::Save(answer)) => Some(answer),
        other => panic!("{other:?}"),
    }
}

fn ready(world: &mut World, revision: u64) -> Export {
    match save(world, revision) {
        Some(Save::Ready(export)) => *export,
        other => panic!("{other:?}"),
    }
}

/// Chunk by chunk, a member gets the very state that the node has, while the node goes on.
#[test]
fn a_state_is_fetched_in_chunks() {
    let mut world = world(300_000);
    let state = world.node("b").replica.store().snapshot();
    let export = ready(&mut world, 1);
    assert_eq!(export.size, state.len() as u64);
    let revision = world.node("b").replica.store().revision();
    assert!(revision >= 300, "and who is there");
    assert_eq!(export.meta.revision, revision);
    assert_eq!(export.meta.configuration.voters.len(), 3);
    write(&mut world, 1_000, 1);
    let mut download = Download::new(export);
    let snapshot = loop {
        if let Some(done) = download.finish(false) {
            break done.expect("a state");
        }
        for offset in download.due(world.now) {
            let id = download.id();
            let request = Body::ChunkRequest(ChunkRequest { id, offset });
            match ask(&mut world, &request) {
                Some(Body::Chunk(chunk)) => download.take(chunk.id, chunk.offset, chunk.data),
                other => panic!("{other:?}"),
            }
        }
    };
    assert_eq!(snapshot.store().snapshot(), state);
    assert!(snapshot.state_bytes() > 4 * CHUNK, "several windows");
}

/// A node that is behind says how far it is; one that keeps a copy that is too old says that it is
/// busy until nobody has asked for it for a while.
#[test]
fn one_copy_at_a_time_and_none_that_is_too_old() {
    let mut world = world(10_000);
    let now = world.node("b").replica.store().revision();
    assert_eq!(save(&mut world, now + 1), Some(Save::Behind(now)));
    let first = ready(&mut world, now);
    write(&mut world, 1_000, 1);
    assert_eq!(ready(&mut world, now).id, first.id, "shared");
    assert_eq!(save(&mut world, now + 1), Some(Save::Busy));
    world.run(Duration::from_secs(6));
    let second = ready(&mut world, now + 1);
    assert_ne!(second.id, first.id);
    let old = ChunkRequest {
        id: first.id,
        offset: 0,
    };
    let gone = ask(&mut world, &Body::ChunkRequest(old));
    assert_eq!(gone, Some(Body::Save(Save::Gone(first.id))));
}

/// Behind the end there is nothing, wherever that is.
#[test]
fn no_offset_is_too_large() {
    let mut world = world(1_000);
    let Export { id, size, .. } = ready(&mut world, 0);
    for offset in [size, size + 1, u64::MAX] {
        match ask(&mut world, &Body::ChunkRequest(ChunkRequest { id, offset })) {
            Some(Body::Chunk(chunk)) => assert_eq!(chunk.data, Bytes::new()),
            other => panic!("{other:?}"),
        }
    }
}

/// A write that everyone has applied when it returns.
fn write(world: &mut World, n: u64, bytes: usize) {
    let request = Input::Request {
        token: Token(1_000 + n),
        operation: Operation::Write(Write::Put {
            key: format!("key-{n}").into(),
            value: vec![n as u8; bytes].into(),
            lease: None,
        }),
        timeout: Duration::from_secs(20),
    };
    let before = world.node("b").replica.store().revision();
    world.step(&name("a"), vec![request]);
    while world.node("b").replica.store().revision() == before {
        world.run(Duration::from_millis(20));
    }
}

/// A restore writes the log first and the record of its cluster last: a directory that has the one
/// without the other is nobody's, and forms no cluster with what it holds.
#[test]
fn a_log_without_a_cluster_is_refused() {
    let world = World::formed(&["a"]);
    let node = world.node("a");
    let start = |formation: Option<&[u8]>, durable: Durable| {
        let config = node.config.clone();
        Replica::new(config, formation, durable, [9; 32], Time(1)).map(drop)
    };
    let record = node.formation.as_deref();
    let accepted = to_vec(&Holds::Accepted(world.formation()));
    for unfinished in [None, Some(&accepted[..])] {
        let refused = start(unfinished, node.durable.clone());
        assert!(
            matches!(refused, Err(StartError::Unfinished)),
            "{refused:?}"
        );
    }
    assert!(start(record, node.durable.clone()).is_ok());
    assert!(start(None, Durable::default()).is_ok());
}
