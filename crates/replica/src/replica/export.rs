//! Copies of the state for whoever saves a snapshot.
//!
//! A node keeps one copy at a time, as bytes, while chunks of it are asked for, and nothing about
//! who asks: whoever asks for a state that the copy already is gets the same one.

use super::*;
use crate::saved::{CHUNK, SavedMeta};
use crate::wire::{Chunk, ChunkRequest, Export, Save, SaveRequest};

/// How long a copy is kept that nobody asks for.
const KEPT: Duration = Duration::from_secs(5);

/// The copy that this node keeps.
pub(super) struct Exported {
    export: Export,
    data: Bytes,
    /// Forgotten then, unless someone asks for it before.
    until: Time,
}

impl Replica {
    /// Makes a copy of the state, once it has come far enough.
    pub(super) fn on_save_request(&mut self, from: &Name, request: SaveRequest) {
        if self.raft.is_none() || self.store.applied() == raft::Index(0) {
            // Whoever asks tries again, or another node.
            return;
        }
        let reached = self.store.revision();
        let kept = self.exported.as_ref();
        let kept = kept.map(|exported| exported.export.meta.revision >= request.revision);
        let answer = match kept {
            _ if reached < request.revision => Save::Behind(reached),
            Some(false) => Save::Busy,
            Some(true) | None => Save::Ready(Box::new(self.export())),
        };
        self.endpoint.send(from, &Body::Save(answer));
    }

    fn export(&mut self) -> Export {
        let until = self.now + KEPT;
        if let Some(exported) = &mut self.exported {
            exported.until = until;
            return exported.export.clone();
        }
        let data = self.store.snapshot();
        let raft = self.raft.as_ref();
        let export = Export {
            id: self.endpoint.nonces.draw(),
            size: data.len() as u64,
            meta: SavedMeta {
                root: self.endpoint.topics.root().to_owned(),
                formation: self.lobby.formation().cloned().expect("consensus runs"),
                node: self.endpoint.name.to_string(),
                index: self.store.applied(),
                term: self.term(),
                revision: self.store.revision(),
                configuration: raft.map(|r| r.configuration().clone()).unwrap_or_default(),
                complete: false,
            },
        };
        self.exported = Some(Exported {
            export: export.clone(),
            data,
            until,
        });
        export
    }

    /// Gives a part of the copy.
    pub(super) fn on_chunk_request(&mut self, from: &Name, request: ChunkRequest) {
        let ChunkRequest { id, offset } = request;
        let wanted = |exported: &&mut Exported| exported.export.id == id;
        let Some(exported) = self.exported.as_mut().filter(wanted) else {
            let gone = Body::Save(Save::Gone(id));
            return self.endpoint.send(from, &gone);
        };
        exported.until = self.now + KEPT;
        let size = exported.data.len();
        let start = usize::try_from(offset).unwrap_or(size).min(size);
        let data = exported.data.slice(start..(start + CHUNK).min(size));
        let chunk = Body::Chunk(Chunk { id, offset, data });
        self.endpoint.send(from, &chunk);
    }

    pub(super) fn forget_export(&mut self) {
        let now = self.now;
        self.exported.take_if(|exported| exported.until <= now);
    }
}
