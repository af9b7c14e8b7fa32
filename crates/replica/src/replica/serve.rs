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
        match operation {
            Operation::Write(write) => {
                // A retry of what is under way waits with it.
                if self.waiting.insert((client, number), origin).is_none() {
                    self.proposals
                        .push(kv::command(client, number, settled, write));
                }
            }
            Operation::Get(key) => {
                self.last_read = self.last_read.next();
                let id = self.last_read;
                self.reads.insert(
                    id,
                    WaitingRead {
                        origin,
                        client,
                        number,
                        what: Wanted::Key(key),
                    },
                );
                self.consensus(raft::Input::Read(id));
            }
            Operation::Members => {
                self.last_read = self.last_read.next();
                let id = self.last_read;
                let what = Wanted::Members;
                self.reads.insert(
                    id,
                    WaitingRead {
                        origin,
                        client,
                        number,
                        what,
                    },
                );
                self.consensus(raft::Input::Read(id));
            }
            Operation::Change(change) => self.on_change(
                Asked {
                    origin,
                    client,
                    number,
                },
                &change,
            ),
            Operation::Transfer(to) => self.on_transfer(
                Asked {
                    origin,
                    client,
                    number,
                },
                &to,
            ),
        }
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
        let answer = match &read.what {
            Wanted::Key(key) => Answer::Read(self.store.get(key)),
            Wanted::Members => Answer::Members(self.members()),
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
            Origin::Remote(name) => self.endpoint.send(name, &Body::Reply(reply)),
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
        for request in self.requests.due(self.now) {
            match self.leader() {
                Some(leader) if leader == self.endpoint.name => self.serve(request, Origin::Local),
                Some(leader) => self.ask_leader(&leader, request),
                None => {}
            }
        }
    }
}
