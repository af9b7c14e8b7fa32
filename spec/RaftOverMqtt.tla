---------------------------- MODULE RaftOverMqtt ----------------------------
(***************************************************************************)
(* Raft for a broadcast medium, as crates/raft implements it.              *)
(*                                                                         *)
(* It is Raft with PreVote and CheckQuorum, and with four differences that *)
(* this module is about:                                                   *)
(*                                                                         *)
(*   - An append is published once, to all.  Nothing in it is fitted to    *)
(*     one follower, so each follower checks for itself what follows on    *)
(*     its log, and commits no further than it has *verified* its log      *)
(*     against this term's leader.                                         *)
(*   - Who cannot place an append says so and is brought up to date on a   *)
(*     unicast catch-up stream, with entries or with a snapshot.           *)
(*   - A Last Will is a hint, true or false, that lets one node forget its *)
(*     leader and campaign without asking first.                           *)
(*   - The disk is slow.  What a node thinks and what its disk holds are   *)
(*     two things here, with the writes under way between them, and a      *)
(*     crash keeps only the disk.                                          *)
(*                                                                         *)
(* There is no time.  A timeout may fire whenever it likes, which allows   *)
(* all that any clock could lead to, and more.                             *)
(*                                                                         *)
(* An entry is its term: a leader appends at most one entry of its term at *)
(* an index, so index and term name it.  Logs begin with the formation     *)
(* record, of term 1.                                                      *)
(***************************************************************************)
EXTENDS Naturals, Sequences, FiniteSets

CONSTANTS
    Node,           \* The voters.
    None,           \* No node: no vote, no leader known.
    All,            \* The address of a broadcast.
    Past,           \* [Node -> what its disk holds at the start]
    Without,        \* The guards that are taken away: see Holds.
    TrackLeader,    \* Whether nodes remember that they heard a leader: see Believes.
    \* Bounds of the model, not of the protocol:
    Candidates,       \* only these ever campaign,
    Unstable,         \* only these crash or lose their disk,
    MayIdle,          \* whether a step may change nothing: only replays have use for that,
    MaxTerm, MaxLog,  \* no term and no log goes further,
    MaxWrites,        \* so many writes of a node are under way at most,
    MaxStreams,       \* so many streams does a leader open in its term,
    MaxBase,          \* so much of a log is compacted,
    MaxWipes          \* so many nodes lose their disk.

VARIABLES
    node,     \* [Node -> what it thinks]: volatile
    disk,     \* [Node -> what it holds]: durable
    writes,   \* [Node -> what its disk will hold after each write under way, oldest first]
    votes,    \* Every vote ever sent: <<term, voter, candidate>>
    acked,    \* [Node -> [term -> the highest index that it acknowledged to its leader]]
    messages, \* All other messages ever sent
    wiped,    \* Nodes that lost their disk: they came back as someone else
    applied   \* What any state machine ever applied, and in which term it was committed
vars == <<node, disk, writes, votes, acked, messages, wiped, applied>>

(***************************************************************************)
(* Messages are never removed, which makes the network as bad as can be: a *)
(* message that is never received was lost, one received twice was         *)
(* doubled, and any may overtake any other.  Two kinds are kept apart      *)
(* because only their sum matters: a candidate counts votes, and of one    *)
(* follower's acknowledgements only the highest counts.                    *)
(***************************************************************************)

Holds(guard) == guard \notin Without
Guards == {
    "a vote reaches the disk before the network",
    "a candidate's own vote reaches the disk before it is counted",
    "an acknowledgement speaks of what is on disk",
    "an acknowledgement speaks of what is verified",
    "an acknowledgement's term is on disk",
    "a leader counts itself by its disk",
    "a commit is clamped to what is verified",
    "what is verified starts anew with each term",
    "the entry before an append is compared",
    "a message of an older term is ignored",
    "only entries of this term are committed by counting",
    "a vote goes to logs that are up to date",
    "one vote in a term",
    "only the committed is compacted",
    "a wiped node is a new node",
    "a campaign begins with pre-votes",
    "who hears its leader gives no pre-vote"}
ASSUME Without \subseteq Guards

Min(a, b) == IF a < b THEN a ELSE b
Max(a, b) == IF a > b THEN a ELSE b
Greatest(S) == CHOOSE x \in S : \A y \in S : y <= x
IsQuorum(S) == 2 * Cardinality(S) > Cardinality(Node)

-----------------------------------------------------------------------------
(* Logs and positions. *)

TermAt(log, i) == IF i = 0 THEN 0 ELSE log[i]
At(log, i)     == [index |-> i, term |-> TermAt(log, i)]
Last(log)      == At(log, Len(log))
IsPrefix(a, b) == Len(a) <= Len(b) /\ SubSeq(b, 1, Len(a)) = a
Prefix(log, i) == SubSeq(log, 1, i)

\* Raft 5.4.1
IsUpToDate(last, other) ==
    \/ last.term > other.term
    \/ last.term = other.term /\ last.index >= other.index

\* The last position at or before `hint` whose term is not above its term, but not before the
\* base: where two logs may agree.
Agreeing(s, hint) ==
    LET end      == Min(hint.index, Len(s.log))
        possible == {i \in s.base..end : TermAt(s.log, i) <= hint.term}
    IN  At(s.log, IF possible = {} THEN s.base ELSE Greatest(possible))

-----------------------------------------------------------------------------
(* A node.  `log` keeps its beginning even where it was compacted: entries up to `base` are only
   there for the invariants to look at, no action sends or compares them. *)

Volatile(held) == [
    term |-> held.term, vote |-> held.vote, log |-> held.log, base |-> held.base,
    role     |-> "Follower",
    commit   |-> held.base,
    verified |-> held.base,    \* the log equals this term's leader's up to here
    leader   |-> None,         \* this term's leader, once heard
    stream   |-> 0,            \* the newest stream seen; of a leader, the newest opened
    heard    |-> FALSE,        \* the leader seems alive
    hinted   |-> FALSE]        \* its will was seen: no pre-vote is needed

Image(s) == [term |-> s.term, vote |-> s.vote, log |-> s.log, base |-> s.base]

\* How much of its log a node will still have if it crashes at any moment from now on.  Without a
\* write under way the disk holds all that the node thinks, and the last write makes it so.
PersistedOf(log, held, queue) ==
    IF queue = <<>> THEN Len(log)
    ELSE LET images == {held.log} \cup {queue[k].log : k \in 1..Len(queue) - 1}
         IN  Greatest({i \in 0..Len(log) : \A image \in images : IsPrefix(Prefix(log, i), image)})

Persisted(n) == PersistedOf(node[n].log, disk[n], writes[n])

\* Everything of a new term begins anew; nothing is known of its leader's log but that it holds
\* what is committed.
EnterTerm(s, term) == [s EXCEPT
    !.term = term, !.vote = None, !.role = "Follower", !.leader = None, !.stream = 0,
    !.heard = FALSE,
    !.verified = IF Holds("what is verified starts anew with each term") THEN s.commit ELSE @]

CatchUpTerm(s, term) == IF term > s.term THEN EnterTerm(s, term) ELSE s

(* Who hears its leader neither campaigns nor votes.  As silence may set in at any moment, a node
   that remembers nothing of this may do all that one may that remembers: with TrackLeader FALSE
   the model allows more, and safety that holds there holds in general. *)
Believes(s) == s.role = "Leader" \/ s.heard

-----------------------------------------------------------------------------
(* One step of node n: to state `next`, sending `out`.  What changed of its durable part becomes a
   write.  Its acknowledgement follows from its state, so it is sent here for all handlers.

   `\E x \in {e}` gives e a name, as LET does; but within an action TLC evaluates a LET at every
   mention of it. *)

LastImage(n) == IF writes[n] = <<>> THEN disk[n] ELSE writes[n][Len(writes[n])]

\* n, in state s with `held` on disk and `queue` under way, acknowledges to its leader all that it
\* may.
Acknowledge(n, s, held, queue) ==
    LET claim == IF Holds("an acknowledgement speaks of what is verified")
                   THEN s.verified ELSE Len(s.log)
    IN  acked' =
          IF /\ s.role = "Follower" /\ s.leader /= None /\ n \notin wiped
             /\ claim > acked[n][s.term]
             /\ \/ s.term = held.term /\ s.vote = held.vote
                \/ ~Holds("an acknowledgement's term is on disk")
          THEN [acked EXCEPT ![n][s.term] =
                  Max(@, IF Holds("an acknowledgement speaks of what is on disk")
                           THEN Min(claim, PersistedOf(s.log, held, queue)) ELSE claim)]
          ELSE acked

Apply(s) ==
    applied' = IF s.commit <= Len(applied) THEN applied
               ELSE applied \o [k \in 1..s.commit - Len(applied) |->
                                  [term |-> s.log[Len(applied) + k], by |-> s.term]]

Step(n, next, out) == \E s \in {next}, said \in {out} :
    /\ MayIdle \/ s /= node[n] \/ ~(said \subseteq messages)
    /\ \E queue \in {IF Image(s) = LastImage(n) THEN writes[n] ELSE Append(writes[n], Image(s))} :
         /\ Len(queue) <= MaxWrites
         /\ writes' = [writes EXCEPT ![n] = queue]
         /\ Acknowledge(n, s, disk[n], queue)
    /\ node' = [node EXCEPT ![n] = s]
    /\ votes' =
         IF /\ s.vote /= None
            /\ ~Holds(IF s.vote = n
                        THEN "a candidate's own vote reaches the disk before it is counted"
                        ELSE "a vote reaches the disk before the network")
         THEN votes \cup {<<s.term, n, s.vote>>} ELSE votes
    /\ messages' = IF said = {} THEN messages ELSE messages \cup said
    /\ Apply(s)
    /\ UNCHANGED <<disk, wiped>>

-----------------------------------------------------------------------------
(* The disk. *)

RequestVote(n, s) == [kind |-> "RequestVote", term |-> s.term, from |-> n, last |-> Last(s.log)]

(* The oldest write reaches the disk.  A vote leaves when it is there, and so does a candidate's
   request: one that left before could be answered to a successor that does not remember asking. *)
Persist(n) ==
    /\ writes[n] /= <<>>
    /\ \E s \in {node[n]}, held \in {Head(writes[n])}, queue \in {Tail(writes[n])} :
         /\ disk' = [disk EXCEPT ![n] = held]
         /\ writes' = [writes EXCEPT ![n] = queue]
         /\ votes' = votes \cup IF held.vote = None THEN {} ELSE {<<held.term, n, held.vote>>}
         /\ messages' = IF s.role = "Candidate" /\ s.term = held.term
                         THEN messages \cup {RequestVote(n, s)} ELSE messages
         /\ Acknowledge(n, s, held, queue)
    /\ UNCHANGED <<node, wiped, applied>>

(* The process ends and starts again.  What reached the disk unnoticed did so in a Persist before:
   the messages that left with it only give the network more to play with. *)
Crash(n) ==
    /\ n \in Unstable
    /\ node' = [node EXCEPT ![n] = Volatile(disk[n])]
    /\ node' /= node \/ writes[n] /= <<>>
    /\ writes' = [writes EXCEPT ![n] = <<>>]
    /\ UNCHANGED <<disk, votes, acked, messages, wiped, applied>>

Empty == [term |-> 0, vote |-> None, log |-> <<>>, base |-> 0]

\* The disk is lost.  The node comes back as an observer, under a key that has no vote.
Wipe(n) ==
    /\ n \in Unstable /\ Cardinality(wiped) < MaxWipes /\ n \notin wiped
    /\ node' = [node EXCEPT ![n] = Volatile(Empty)]
    /\ disk' = [disk EXCEPT ![n] = Empty]
    /\ writes' = [writes EXCEPT ![n] = <<>>]
    /\ wiped' = wiped \cup {n}
    /\ UNCHANGED <<votes, acked, messages, applied>>

HasVote(n) == n \notin wiped \/ ~Holds("a wiped node is a new node")

-----------------------------------------------------------------------------
(* Seeking a leader. *)

\* The leader was silent for long.
Lapse(n) ==
    /\ node[n].heard
    /\ Step(n, [node[n] EXCEPT !.heard = FALSE], {})

(* The will of the leader's session arrived, be that true or not.  Its receiver forgets the
   leader; nobody else does. *)
Will(n) ==
    /\ node[n].role = "Follower" /\ node[n].heard
    /\ Step(n, [node[n] EXCEPT !.heard = FALSE, !.hinted = TRUE],
            {[kind |-> "Will", term |-> node[n].term, to |-> n]})

\* "Would you vote for me in the next term?"
AskForPreVotes(n) ==
    LET s == node[n] IN
    /\ TrackLeader /\ HasVote(n) /\ n \in Candidates /\ s.term < MaxTerm
    /\ s.role \in {"Follower", "Candidate"} /\ ~s.heard
    /\ Step(n, [s EXCEPT !.role = "PreCandidate", !.hinted = FALSE],
            {[kind |-> "RequestPreVote", term |-> s.term, from |-> n, last |-> Last(s.log)]})

\* Changes nobody's term.
OnRequestPreVote(n, s, m) ==
    /\ HasVote(n) /\ m.term >= s.term /\ IsUpToDate(m.last, Last(s.log))
    /\ ~Believes(s) \/ ~Holds("who hears its leader gives no pre-vote")
    /\ Step(n, s, {[kind |-> "PreVote", from |-> n, to |-> m.from, proposed |-> m.term + 1]})

PreVotes(n, term) ==
    {n} \cup {m.from : m \in {m \in messages :
                m.kind = "PreVote" /\ m.to = n /\ m.proposed = term}}

MayCampaign(n) ==
    LET s == node[n] IN
    /\ HasVote(n) /\ s.role /= "Leader" /\ ~s.heard
    /\ \/ ~TrackLeader
       \/ s.hinted
       \/ s.role = "PreCandidate" /\ IsQuorum(PreVotes(n, s.term + 1))
       \/ ~Holds("a campaign begins with pre-votes")

Campaign(n) ==
    LET s == EnterTerm(node[n], node[n].term + 1)
        t == [s EXCEPT !.vote = n, !.role = "Candidate", !.hinted = FALSE]
        early == ~Holds("a candidate's own vote reaches the disk before it is counted")
    IN  /\ MayCampaign(n) /\ n \in Candidates /\ t.term <= MaxTerm
        /\ Step(n, t, IF early THEN {RequestVote(n, t)} ELSE {})

(* A vote is granted on term and log alone.  A request that came while the leader seems alive
   changes nothing, not even the term: it is held, that is, left for later, when the will may
   have come. *)
OnRequestVote(n, s, m) ==
    LET t    == CatchUpTerm(s, m.term)
        free == t.vote \in {None, m.from} \/ ~Holds("one vote in a term")
    IN  /\ HasVote(n) /\ m.term >= s.term
        /\ m.term > s.term => ~Believes(s)
        /\ Step(n, IF free /\ (IsUpToDate(m.last, Last(t.log))
                               \/ ~Holds("a vote goes to logs that are up to date"))
                     THEN [t EXCEPT !.vote = m.from, !.hinted = FALSE] ELSE t, {})

(* Any other message may tell of a newer term: a refusal, a rejection of an old leader.  Whoever
   speaks in a term has it on disk, and whoever has lost that disk since had heard of it from a
   candidate whose own vote was on disk: what that one said may still be under way. *)
HearOfTerm(n) ==
    \E term \in {disk[peer].term : peer \in Node} \cup {vote[1] : vote \in votes} :
        /\ term > node[n].term
        /\ Step(n, EnterTerm(node[n], term), {})

-----------------------------------------------------------------------------
(* Leading. *)

AppendMessage(l, s, to, stream, from, through) == [
    kind |-> "Append", term |-> s.term, from |-> l, to |-> to, stream |-> stream,
    prev |-> At(s.log, from), entries |-> SubSeq(s.log, from + 1, through),
    commit |-> s.commit]

\* Appends an entry of its term and publishes it once; its own write may still be under way.
Lead(l, s) ==
    LET t == [s EXCEPT !.log = Append(@, s.term)] IN
    /\ Len(s.log) < MaxLog
    /\ Step(l, t, {AppendMessage(l, t, All, 0, Len(s.log), Len(t.log))})

BecomeLeader(n) ==
    LET s == node[n] IN
    /\ s.role = "Candidate"
    /\ IsQuorum({voter \in Node : <<s.term, voter, n>> \in votes})
    /\ Lead(n, [s EXCEPT !.role = "Leader"])

Propose(l) == node[l].role = "Leader" /\ Lead(l, node[l])

(* A leader that nobody has answered for long steps down (CheckQuorum); a candidate that reaches no
   broker gives up.  Both stay in their term.  Who gives up can do nothing that a candidate cannot,
   so the model of safety alone leaves that out. *)
StepDown(n) ==
    /\ node[n].role \in {"Leader"} \cup IF TrackLeader THEN {"PreCandidate", "Candidate"} ELSE {}
    /\ Step(n, [node[n] EXCEPT !.role = "Follower"], {})

\* Those whose disks hold the leader's log up to i.
Holders(l, i) ==
    LET s   == node[l]
        own == IF Holds("a leader counts itself by its disk") THEN Persisted(l) ELSE Len(s.log)
    IN  {f \in Node : IF f = l THEN own >= i ELSE acked[f][s.term] >= i}

MayCommit(l, i) ==
    /\ node[l].role = "Leader" /\ node[l].commit < i /\ i <= Len(node[l].log)
    /\ IsQuorum(Holders(l, i))
    /\ \/ node[l].log[i] = node[l].term  \* Raft 5.4.2
       \/ ~Holds("only entries of this term are committed by counting")

\* News of a commit travel with the next append; that may be an empty one.
Commit(l, i) ==
    LET s == [node[l] EXCEPT !.commit = i] IN
    /\ MayCommit(l, i)
    /\ Step(l, s, {AppendMessage(l, s, All, 0, Len(s.log), Len(s.log))})

-----------------------------------------------------------------------------
(* Following. *)

\* n takes the sender for its term's leader.
Follow(s, m, fresh) == [s EXCEPT
    !.role = "Follower", !.leader = m.from, !.stream = Max(@, m.stream),
    !.heard  = @ \/ fresh,
    !.hinted = @ /\ ~fresh]

IsInert(s, m) == m.stream /= 0 /\ m.stream < s.stream

\* A term has one leader.
IsFromLeader(s, m) == s.role /= "Leader" /\ s.leader \in {None, m.from}

\* What lies before the base is in a snapshot, hence committed, hence equal.
Follows(s, prev) ==
    \/ prev.index < s.base
    \/ /\ prev.index <= Len(s.log)
       /\ \/ TermAt(s.log, prev.index) = prev.term
          \/ ~Holds("the entry before an append is compared")

\* The log after an append that fits: entries that are there stay, and with them what follows.
Merge(s, m) ==
    LET skip    == IF s.base > m.prev.index + 1 THEN s.base - m.prev.index - 1 ELSE 0
        start   == m.prev.index + skip
        entries == SubSeq(m.entries, skip + 1, Len(m.entries))
        known   == \A k \in 1..Len(entries) :
                       start + k <= Len(s.log) /\ s.log[start + k] = entries[k]
    IN  IF m.entries = <<>> \/ known THEN s.log ELSE Prefix(s.log, start) \o entries

\* The first place where an append contradicts the log; 0 if it does not.
Conflict(s, m) ==
    LET differs == {i \in Max(s.base, m.prev.index + 1)..Min(Len(s.log), m.prev.index + Len(m.entries)) :
                        i > m.prev.index /\ s.log[i] /= m.entries[i - m.prev.index]}
    IN  IF differs = {} THEN 0 ELSE CHOOSE i \in differs : \A j \in differs : i <= j

\* Checked, kept, and committed as far as verified.
AfterAppend(s, m) ==
    LET through  == m.prev.index + Len(m.entries)
        t        == [s EXCEPT !.log = Merge(s, m), !.verified = Max(@, through)]
        limit    == IF Holds("a commit is clamped to what is verified")
                      THEN t.verified ELSE Len(t.log)
    IN  [t EXCEPT !.commit = Max(@, Min(m.commit, limit))]

Contradicts(s, m) == m.entries /= <<>> /\ Conflict(s, m) \in 1..Max(s.verified, s.commit)

Reject(n, s, m) == [kind |-> "Reject", term |-> s.term, from |-> n, to |-> m.from,
                    hint |-> Agreeing(s, m.prev)]

\* A message that others overtook says nothing about whether the leader lives now.
Freshness == IF TrackLeader THEN BOOLEAN ELSE {FALSE}

OnAppend(n, s, m) ==
    /\ m.term >= s.term \/ ~Holds("a message of an older term is ignored")
    /\ \E fresh \in Freshness, t \in {CatchUpTerm(s, m.term)} : \E f \in {Follow(t, m, fresh)} :
         CASE ~IsFromLeader(t, m) -> Step(n, t, {})
           [] IsFromLeader(t, m) /\ IsInert(t, m) ->
                Step(n, [t EXCEPT !.role = "Follower", !.leader = m.from], {})
           [] OTHER ->
                IF ~Follows(f, m.prev)
                THEN Step(n, f, IF f.term = disk[n].term /\ f.vote = disk[n].vote
                                THEN {Reject(n, f, m)} ELSE {})
                ELSE Step(n, IF Contradicts(f, m) THEN f ELSE AfterAppend(f, m), {})

AfterSnapshot(s, m) ==
    IF m.last.index <= s.commit THEN [s EXCEPT !.verified = Max(@, s.commit)]
    ELSE LET agrees == m.last.index <= Len(s.log) /\ s.log[m.last.index] = m.last.term
         IN  [s EXCEPT !.log = IF agrees THEN @ ELSE m.log, !.base = m.last.index,
                       !.commit = m.last.index, !.verified = Max(@, m.last.index)]

OnSnapshot(n, s, m) ==
    /\ m.term >= s.term
    /\ \E fresh \in Freshness, t \in {CatchUpTerm(s, m.term)} :
         Step(n, CASE ~IsFromLeader(t, m) -> t
                   [] IsFromLeader(t, m) /\ IsInert(t, m) ->
                        [t EXCEPT !.role = "Follower", !.leader = m.from]
                   [] OTHER -> AfterSnapshot(Follow(t, m, fresh), m), {})

Compact(n, i) ==
    LET s == node[n] IN
    /\ i > s.base
    /\ i <= s.commit \/ ~Holds("only the committed is compacted")
    /\ Step(n, [s EXCEPT !.base = i], {})

-----------------------------------------------------------------------------
(* Catching up: a rejection opens a stream, the newest stream goes on from what it has sent, and
   entries that are gone are replaced by the snapshot.  A hint only spares work: the stream may
   begin anywhere before the place that it names.  A stream's messages carry one entry each: more
   would take several steps of this model at once. *)

StreamMessage(l, to, stream, from) ==
    LET s == node[l] IN
    IF from < s.base
    THEN [kind |-> "Snapshot", term |-> s.term, from |-> l, to |-> to, stream |-> stream,
          last |-> At(s.log, s.base), log |-> Prefix(s.log, s.base)]
    ELSE AppendMessage(l, s, to, stream, from, Min(from + 1, Len(s.log)))

OpenStream(l) ==
    /\ node[l].role = "Leader" /\ node[l].stream < MaxStreams
    /\ \E m \in messages :
        /\ m.kind = "Reject" /\ m.to = l /\ m.term = node[l].term
        /\ LET s         == [node[l] EXCEPT !.stream = @ + 1]
               agreed    == Agreeing(s, m.hint)
               disagrees == m.hint.index < s.base \/ agreed.term > m.hint.term
           IN  \E from \in IF disagrees /\ s.base > 0 THEN {0} ELSE s.base..agreed.index :
                   Step(l, s, {StreamMessage(l, m.from, s.stream, from)})

OfStream(m, l) == /\ m.kind \in {"Append", "Snapshot"} /\ m.stream /= 0
                  /\ m.from = l /\ m.term = node[l].term

GoOn(l) ==
    /\ node[l].role = "Leader" /\ node[l].stream > 0
    /\ \E m \in messages :
        /\ OfStream(m, l)
        /\ \A other \in messages : OfStream(other, l) /\ other.to = m.to => other.stream <= m.stream
        /\ LET through == IF m.kind = "Append" THEN m.prev.index + Len(m.entries) ELSE m.last.index
               next    == StreamMessage(l, m.to, m.stream, through)
           IN  /\ through < Len(node[l].log)
               /\ next \notin messages
               /\ Step(l, node[l], {next})

-----------------------------------------------------------------------------

Receive(n, m) ==
    CASE m.kind = "Append"         -> /\ m.from /= n /\ (m.to = n \/ m.to = All)
                                      /\ OnAppend(n, node[n], m)
      [] m.kind = "RequestVote"    -> m.from /= n /\ OnRequestVote(n, node[n], m)
      [] m.kind = "RequestPreVote" -> m.from /= n /\ OnRequestPreVote(n, node[n], m)
      [] m.kind = "Snapshot"       -> m.to = n /\ OnSnapshot(n, node[n], m)
      [] OTHER                     -> FALSE  \* answers: counted where they are needed

Formed == [n \in Node |-> [term |-> 1, vote |-> None, log |-> <<1>>, base |-> 0]]

Init ==
    /\ disk = Past
    /\ node = [n \in Node |-> Volatile(Past[n])]
    /\ writes = [n \in Node |-> <<>>]
    /\ votes = {}
    /\ acked = [n \in Node |-> [term \in 0..MaxTerm |-> 0]]
    /\ messages = {}
    /\ wiped = {}
    /\ applied = <<>>

Next == \E n \in Node :
    \/ Persist(n) \/ Crash(n) \/ Wipe(n)
    \/ Lapse(n) \/ Will(n) \/ AskForPreVotes(n) \/ Campaign(n) \/ HearOfTerm(n)
    \/ BecomeLeader(n) \/ StepDown(n) \/ Propose(n) \/ OpenStream(n) \/ GoOn(n)
    \/ \E i \in node[n].commit + 1..Len(node[n].log) : Commit(n, i)
    \/ \E i \in node[n].base + 1..Min(MaxBase, Len(node[n].log)) : Compact(n, i)
    \/ \E m \in messages : Receive(n, m)

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* What must hold. *)

\* A leader opens its term with a broadcast, so every one that ever was has left a message.
ElectionSafety ==
    LET leaders == {<<m.term, m.from>> : m \in {m \in messages : m.kind = "Append"}} IN
    \A a, b \in leaders : a[1] = b[1] => a = b

Logs == {node[n].log : n \in Node} \cup {disk[n].log : n \in Node}
        \cup UNION {{writes[n][k].log : k \in 1..Len(writes[n])} : n \in Node}

LogMatching ==
    LET logs == Logs IN
    \A a, b \in logs : a /= b =>
        \A i \in 1..Min(Len(a), Len(b)) : a[i] = b[i] => Prefix(a, i) = Prefix(b, i)

\* The sequence that any state machine applies is the one that all apply.
StateMachineSafety ==
    \A n \in Node : \A i \in 1..node[n].commit :
        i <= Len(applied) /\ node[n].log[i] = applied[i].term

\* A leader of a later term holds all that was committed before.
LeaderCompleteness ==
    \A n \in Node : node[n].role = "Leader" =>
        \A i \in 1..Len(applied) : applied[i].by < node[n].term =>
            i <= Len(node[n].log) /\ node[n].log[i] = applied[i].term

\* What was applied anywhere is on the disks of a quorum, for good.
CommittedIsDurable ==
    \A i \in 1..Len(applied) :
        IsQuorum(wiped \cup {n \in Node :
            i <= Len(disk[n].log) /\ disk[n].log[i] = applied[i].term})

\* A follower trusts what it checked, and that is what its leader has.
CommitWithinVerified ==
    \A n \in Node : LET s == node[n] IN
        /\ s.base <= s.commit /\ s.commit <= Len(s.log)
        /\ s.role = "Follower" /\ s.leader /= None =>
             s.commit <= s.verified /\ s.verified <= Len(s.log)

VerifiedIsTheLeaders ==
    \A f \in Node : LET s == node[f] IN
        s.role = "Follower" /\ s.leader /= None =>
            LET t == node[s.leader] IN
            t.role = "Leader" /\ t.term = s.term =>
                Prefix(s.log, s.verified) = Prefix(t.log, s.verified)

\* What a node promised, its disk remembers.
VoteIsDurable ==
    \A vote \in votes : LET held == disk[vote[2]] IN
        \/ vote[2] \in wiped
        \/ held.term > vote[1]
        \/ held.term = vote[1] /\ held.vote = vote[3]

AcknowledgedIsDurable ==
    \A l \in Node : node[l].role = "Leader" =>
        \A f \in Node \ wiped : disk[f].term = node[l].term =>
            IsPrefix(Prefix(node[l].log, acked[f][node[l].term]), disk[f].log)

TermIsDurable ==
    /\ \A m \in messages : m.kind \in {"RequestVote", "Append", "Snapshot", "Reject"} =>
           m.from \in wiped \/ disk[m.from].term >= m.term
    /\ \A n \in Node \ wiped : \A term \in 1..MaxTerm : acked[n][term] > 0 => disk[n].term >= term

\* Nobody enters a term on its own account: a quorum was willing, or its leader's will came.
CampaignIsBacked ==
    TrackLeader => \A m \in messages : m.kind = "RequestVote" =>
        \/ IsQuorum(PreVotes(m.from, m.term))
        \/ \E will \in messages :
               will.kind = "Will" /\ will.to = m.from /\ will.term < m.term

\* A follower's hearing is its own: nobody else can make it doubt.
HeardIsRespected ==
    [][\A m \in messages' \ messages : m.kind = "PreVote" => ~Believes(node[m.from])]_vars

=============================================================================
