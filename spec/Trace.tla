-------------------------------- MODULE Trace -------------------------------
(***************************************************************************)
(* Replays recorded runs of the real core (crates/raft/tests/trace).       *)
(*                                                                         *)
(* A run is a sequence of lines, each of them one step of one node: what   *)
(* went in, what was said, and the node's and its disk's state after.  One *)
(* step of the core may be several of the specification: what the input    *)
(* does, then what the passing of time adds (a leader given up, a request  *)
(* held until now, a campaign), and a commit.  A line is accepted if the   *)
(* specification has such steps of that node that end in the recorded      *)
(* state, and if all that was said may be said there.                      *)
(*                                                                         *)
(* A message that is received is the very one that was sent, by number.    *)
(***************************************************************************)
EXTENDS RaftOverMqtt, TLC, TraceData

VARIABLES
    run,      \* which recorded run this is
    line,     \* the line at hand
    left,     \* how many more steps may belong to it; 0 where its input is still to come
    before,   \* the node and the number of its writes under way, as the line found them
    waiting      \* [Node -> the newest vote requests and pre-vote requests that came too early]
traceVars == <<vars, run, line, left, before, waiting>>

Line    == Runs[run].lines[line]
Sent    == Runs[run].messages
Recorded     == Runs[run].states[Line.state]
RecordedDisk == Runs[run].states[Line.disk]
MaxSteps == 6

TraceInit ==
    /\ Init
    /\ run \in 1..Len(Runs) /\ Runs[run].nodes = Cardinality(Node)
    /\ line = 1 /\ left = 0
    /\ before = [writes |-> 0, role |-> "Follower"]
    /\ waiting = [n \in Node |-> {}]

-----------------------------------------------------------------------------
(* What goes in. *)

Nothing == UNCHANGED vars

HearOf(n, term) ==
    IF term > node[n].term THEN Step(n, EnterTerm(node[n], term), {}) ELSE Nothing

\* While a disk has no room for entries, an append is but a heartbeat.
ReceiveAppend(n, m) ==
    IF m.term < node[n].term THEN Nothing
    ELSE \E entries \in {m.entries, <<>>} : OnAppend(n, node[n], [m EXCEPT !.entries = entries])

\* A snapshot comes in pieces; all but the last only tell of the leader.
ReceiveSnapshot(n, m) ==
    LET whole == [m EXCEPT !.log = [i \in 1..m.last.index |-> applied[i].term]]
        t     == CatchUpTerm(node[n], m.term)
    IN  IF m.term < node[n].term THEN Nothing
        ELSE \/ m.last.index <= Len(applied) /\ OnSnapshot(n, node[n], whole)
             \/ \E fresh \in BOOLEAN : IsFromLeader(t, m) /\ Step(n, Follow(t, m, fresh), {})

\* Granted or refused by the specification, or held or refused without any change of state.
ReceiveVoteRequest(n, m) ==
    \/ OnRequestVote(n, node[n], m)
    \/ m.term < node[n].term /\ Nothing
    \/ m.term > node[n].term /\ Believes(node[n]) /\ Nothing

ReceiveMessage(n, m) ==
    CASE m.kind = "Append"         -> ReceiveAppend(n, m)
      [] m.kind = "Snapshot"       -> ReceiveSnapshot(n, m)
      [] m.kind = "RequestVote"    -> ReceiveVoteRequest(n, m)
      [] m.kind = "RequestPreVote" -> OnRequestPreVote(n, node[n], m) \/ Nothing
      [] m.kind = "PreVote" /\ m.granted -> Nothing
      [] OTHER                     -> HearOf(n, m.term)

\* The recorded log tells how many entries were taken.
ReceiveProposal(n) ==
    LET s == node[n]
        more == Recorded.base + Len(Recorded.log) - Len(s.log)
    IN  IF s.role = "Leader" /\ more > 0
        THEN Step(n, [s EXCEPT !.log = @ \o [k \in 1..more |-> s.term]], {})
        ELSE Nothing

IsRequest(m) == m.kind \in {"RequestVote", "RequestPreVote"}

\* Of each kind the newest is remembered.
Hold(n) ==
    waiting' = IF Line.input = "message" /\ IsRequest(Sent[Line.id])
            THEN [waiting EXCEPT ![n] = {Line.id} \cup
                     {id \in @ : Sent[id].kind /= Sent[Line.id].kind}]
            ELSE waiting

Input ==
    /\ left = 0 /\ line <= Len(Runs[run].lines)
    /\ Line.input \notin {"written", "crash"}
    /\ \E n \in {Line.node} :
         /\ CASE Line.input = "message" -> ReceiveMessage(n, Sent[Line.id])
              [] Line.input = "propose" -> ReceiveProposal(n)
              [] Line.input = "compact" -> Compact(n, Line.through) \/ Nothing
              [] Line.input = "will"    -> Will(n) \/ Nothing
              [] OTHER                  -> Nothing
         /\ before' = [writes |-> Len(writes[n]), role |-> node[n].role]
         /\ Hold(n)
    /\ left' = MaxSteps
    /\ UNCHANGED <<run, line>>

\* The leader was silent for long before the input came.
LapseBefore ==
    /\ left = 0 /\ line <= Len(Runs[run].lines)
    /\ Line.input = "message"
    /\ \E n \in {Line.node} : Lapse(n)
    /\ UNCHANGED <<run, line, left, before, waiting>>

(* What may follow within the same step. *)

Reconsider(n) ==
    \E id \in waiting[n] : LET m == Sent[id] IN
        IF m.kind = "RequestVote" THEN OnRequestVote(n, node[n], m)
        ELSE OnRequestPreVote(n, node[n], m)

Then ==
    /\ left > 1
    /\ \E n \in {Line.node} :
         \/ Recorded.role = "Follower" /\ (Lapse(n) \/ StepDown(n))
         \/ ~Recorded.heard /\ Lapse(n)
         \/ ~Recorded.heard /\ Reconsider(n)
         \/ Recorded.role \in {"PreCandidate", "Candidate"} /\ (AskForPreVotes(n) \/ Campaign(n))
         \/ Recorded.role = "Leader" /\ BecomeLeader(n)
         \/ Recorded.commit > node[n].commit /\ Commit(n, Recorded.commit)
    /\ vars' /= vars
    /\ left' = left - 1
    /\ UNCHANGED <<run, line, before, waiting>>

-----------------------------------------------------------------------------
(* What comes out. *)

Rest(log, base) == SubSeq(log, base + 1, Len(log))

IsRecorded(s, state) ==
    /\ s.term = state.term /\ s.vote = state.vote /\ s.role = state.role
    /\ s.base = state.base /\ Rest(s.log, s.base) = state.log
    /\ s.commit = state.commit /\ s.heard = state.heard
    /\ s.role = "Follower" /\ s.leader /= None => s.verified = state.verified

DiskIsRecorded(n) ==
    LET held == disk[n] recorded == RecordedDisk IN
    /\ held.term = recorded.term /\ held.vote = recorded.vote
    /\ held.base = recorded.base /\ Rest(held.log, held.base) = recorded.log

TermIsOnDisk(n, m) == disk[n].term >= m.term

\* Whether n may say m now.
MaySay(n, m) ==
    LET s    == node[n]
        leads == "Leader" \in {s.role, before.role}
    IN  CASE m.kind = "Append" ->
               /\ leads /\ m.term = s.term /\ m.commit <= s.commit
               /\ m.prev.index + Len(m.entries) <= Len(s.log)
               /\ m.prev = At(s.log, m.prev.index)
               /\ m.entries = SubSeq(s.log, m.prev.index + 1, m.prev.index + Len(m.entries))
          [] m.kind = "Snapshot" ->
               leads /\ m.term = s.term /\ m.last.index <= s.commit /\ m.last = At(s.log, m.last.index)
          [] m.kind = "Acknowledge" -> TermIsOnDisk(n, m) /\ m.match <= acked[n][m.term]
          [] m.kind = "Vote" ->
               IF m.granted THEN <<m.term, n, m.to>> \in votes ELSE TermIsOnDisk(n, m)
          [] m.kind = "PreVote" ->
               IF m.granted
               THEN [kind |-> "PreVote", from |-> n, to |-> m.to, proposed |-> m.proposed] \in messages
               ELSE TermIsOnDisk(n, m)
          [] m.kind = "RequestVote" ->
               <<m.term, n, n>> \in votes /\ (m.last = Last(s.log) \/ s.role = "Leader")
          [] m.kind = "RequestPreVote" -> m.term <= s.term
          [] OTHER -> TermIsOnDisk(n, m)  \* rejections and progress

\* One step of the core writes once.
OneWrite(n) ==
    writes' = [writes EXCEPT ![n] =
        IF Len(@) > before.writes THEN Append(SubSeq(@, 1, before.writes), @[Len(@)]) ELSE @]

Accept ==
    /\ line' = line + 1 /\ left' = 0
    /\ line = Len(Runs[run].lines) => PrintT(<<"accepted", Runs[run].name>>)

End ==
    /\ left > 0
    /\ IsRecorded(node[Line.node], Recorded)
    /\ DiskIsRecorded(Line.node)
    /\ \A k \in 1..Len(Line.out) : MaySay(Line.node, Sent[Line.out[k]])
    /\ OneWrite(Line.node)
    /\ messages' = {m \in messages : m.kind = "PreVote"}
    /\ Accept
    /\ UNCHANGED <<node, disk, votes, acked, wiped, applied, run, before, waiting>>

Written ==
    /\ left = 0 /\ line <= Len(Runs[run].lines) /\ Line.input = "written"
    /\ \E n \in {Line.node} : Persist(n)
    /\ LET held == disk'[Line.node] IN
         /\ held.term = RecordedDisk.term /\ held.vote = RecordedDisk.vote
         /\ held.base = RecordedDisk.base /\ Rest(held.log, held.base) = RecordedDisk.log
    /\ Accept
    /\ UNCHANGED <<run, before, waiting>>

Crashed ==
    /\ left = 0 /\ line <= Len(Runs[run].lines) /\ Line.input = "crash"
    /\ (\E n \in {Line.node} : Crash(n)) \/ (node[Line.node] = Volatile(disk[Line.node])
                            /\ writes[Line.node] = <<>> /\ Nothing)
    /\ Accept
    /\ waiting' = [waiting EXCEPT ![Line.node] = {}]
    /\ UNCHANGED <<run, before>>

TraceNext == Input \/ LapseBefore \/ Then \/ End \/ Written \/ Crashed

TraceSpec == TraceInit /\ [][TraceNext]_traceVars
=============================================================================
