//! Requests: a leader's for whoever asks, and our own callers' to whoever leads.

use super::*;

impl Replica {
    /// Answers a request, or sees to it that it will be answered.
    pub(super) fn serve(&mut self, request: Request, origin: Origin) {
        let Request {
            client,
            number,
            settled,
            operation,
            begun,
        } = request;
        if self.role() != Some(Role::Leader) || self.witness {
            let me = &self.endpoint.name;
            let leader = self.leader().filter(|leader| leader != me);
            let leader = leader.map(|name| name.to_string());
            return self.answer(
                &origin,
                Reply {
                    client,
                    number,
                    answer: Answer::NotLeader(leader),
                },
            );
        }
        if !fits(&operation) {
            let answer = Answer::TooLarge(MAX_VALUE as u64);
            return self.answer(
                &origin,
                Reply {
                    client,
                    number,
                    answer,
                },
            );
        }
        if self.waiting.len() + self.reads.len() >= MAX_WAITING {
            return self.answer(
                &origin,
                Reply {
                    client,
                    number,
                    answer: Answer::Busy,
                },
            );
        }
        // What an older build would apply to nothing is not logged while one is there.
        let mixed = self.is_mixed();
        let asked = Asked {
            origin,
            client,
            number,
        };
        match operation {
            Operation::Write(write) if mixed && write.version() > 1 => {
                let why = self.older_build();
                let why = why.unwrap_or_else(|| "a node runs an older build".to_owned());
                let answer = Answer::NotYet(why);
                let reply = Reply {
                    client,
                    number,
                    answer,
                };
                self.answer(&asked.origin, reply);
            }
            Operation::Write(write) => {
                let begun = begun.filter(|_| !mixed);
                // A retry of what is under way waits with it.
                if self
                    .waiting
                    .insert((client, number), asked.origin)
                    .is_none()
                {
                    self.proposals
                        .push(kv::command(client, number, settled, begun, write));
                }
            }
            Operation::Get(key) => self.read(asked, Wanted::Key(key)),
            Operation::Members => self.read(asked, Wanted::Members),
            Operation::Range(range) => self.read(asked, Wanted::Range(range)),
            Operation::KeepAlive(lease) => self.read(asked, Wanted::KeepAlive(lease)),
            Operation::Lease(lease) => self.read(asked, Wanted::Lease(lease)),
            Operation::Leases(after) => self.read(asked, Wanted::Leases(after)),
            Operation::Change(change) => self.on_change(asked, &change),
            Operation::Transfer(to) => self.on_transfer(asked, &to),
        }
    }

    /// Asks a quorum whether we lead; the answer follows.
    fn read(&mut self, asked: Asked, what: Wanted) {
        let Asked {
            origin,
            client,
            number,
        } = asked;
        self.last_read = self.last_read.next();
        let id = self.last_read;
        let read = WaitingRead {
            origin,
            client,
            number,
            what,
        };
        self.reads.insert(id, read);
        self.consensus(raft::Input::Read(id));
    }

    pub(super) fn answer_write(&mut self, client: ClientId, number: RequestNumber, answer: Answer) {
        if let Some(origin) = self.waiting.remove(&(client, number)) {
            self.answer(
                &origin,
                Reply {
                    client,
                    number,
                    answer,
                },
            );
        }
    }

    pub(super) fn answer_read(&mut self, id: ReadId) {
        let Some(read) = self.reads.remove(&id) else {
            return;
        };
        let answer = match read.what {
            Wanted::Key(key) => Answer::Read(self.store.get(&key)),
            Wanted::Members => Answer::Members(self.members()),
            Wanted::Range(range) => Answer::Range(self.store.range(&range)),
            Wanted::KeepAlive(lease) => self.keep_alive(lease),
            Wanted::Lease(lease) => self.lease_status(lease),
            Wanted::Leases(after) => self.list_leases(after),
        };
        self.answer(
            &read.origin,
            Reply {
                client: read.client,
                number: read.number,
                answer,
            },
        );
    }

    pub(super) fn refuse_read(&mut self, id: ReadId, refusal: Refusal) {
        let Some(read) = self.reads.remove(&id) else {
            return;
        };
        let answer = self.refusal(refusal);
        self.answer(
            &read.origin,
            Reply {
                client: read.client,
                number: read.number,
                answer,
            },
        );
    }

    pub(super) fn refusal(&self, refusal: Refusal) -> Answer {
        match refusal {
            Refusal::Busy => Answer::Busy,
            Refusal::TooLarge { limit } => Answer::TooLarge(limit as u64),
            Refusal::NotLeader { leader } => {
                let name = leader.and_then(|key| self.name_of(key));
                Answer::NotLeader(name.map(|name| name.to_string()))
            }
        }
    }

    pub(super) fn answer(&mut self, origin: &Origin, reply: Reply) {
        match origin {
            Origin::Local => self.on_reply(reply),
            Origin::Remote(name) => {
                let mut body = Body::Reply(reply);
                if let Body::Reply(reply) = &mut body
                    && matches!(reply.answer, Answer::SessionForgotten(_))
                    && self
                        .endpoint
                        .peers
                        .speaks_as(name)
                        .is_some_and(|speaks| speaks < 2)
                {
                    reply.answer = Answer::SessionExpired;
                }
                self.endpoint.send(name, &body);
            }
        }
    }

    pub(super) fn on_reply(&mut self, reply: Reply) {
        if let Some((token, result)) = self.requests.on_reply(reply, self.now) {
            self.effects.push(Effect::Done { token, result });
        }
    }

    fn ask_leader(&mut self, leader: &Name, request: Request) {
        let (client, number) = (request.client, request.number);
        let request = Body::Request(request);
        if !self.endpoint.is_too_old(leader, &request) {
            return self.endpoint.send(leader, &request);
        }
        let why = self.older_build();
        let answer = Answer::NotYet(why.unwrap_or_else(|| older_leader(leader)));
        self.on_reply(Reply {
            number,
            client,
            answer,
        });
    }

    pub(super) fn send_requests(&mut self) {
        for (token, error) in self.requests.expire(self.now) {
            self.effects.push(Effect::Done {
                token,
                result: Err(error),
            });
        }
        if let Some(raft) = &self.raft {
            self.requests.learn(raft.commit_index());
        }
        // What nobody could be asked was not sent, and is not in doubt.
        let Some(leader) = self.leader() else {
            return;
        };
        for request in self.requests.due(self.now) {
            match leader == self.endpoint.name {
                true => self.serve(request, Origin::Local),
                false => self.ask_leader(&leader, request),
            }
        }
    }
}
