--------------------------------- MODULE MC ---------------------------------
(* What TLC's configurations need beside constants: pasts to start from, so that a story that
   begins late need not be searched for from the start. *)
EXTENDS RaftOverMqtt, TLC

CONSTANTS n1, n2, n3

Past3(a, b, c) == [n \in Node |-> CASE n = n1 -> a [] n = n2 -> b [] n = n3 -> c]

Held(term, vote, log) == [term |-> term, vote |-> vote, log |-> log, base |-> 0]

\* n3 led term 2 and wrote an entry that reached nobody.
OwnTail == Past3(Held(2, n3, <<1>>), Held(2, None, <<1>>), Held(2, n3, <<1, 2>>))

\* The same, after an entry that all hold.
LongerTail == Past3(Held(2, n3, <<1, 1>>), Held(2, None, <<1, 1>>), Held(2, n3, <<1, 1, 2>>))

\* Figure 8 (b) of the Raft paper, with three nodes: n1 led term 2, then n3 term 3, and the entry
\* of each reached nobody else.
Figure8 == Past3(Held(2, n1, <<1, 2>>), Held(3, n3, <<1>>), Held(3, n3, <<1, 3>>))

\* n1 leads term 4, and only then n3 campaigns.
Figure8InOrder ==
    /\ node[n1].role \in {"Candidate", "Leader"} => node[n1].term = 4
    /\ node[n3].role \in {"Candidate", "Leader"} => applied /= <<>>

(* n1 leads term 2 by n2's vote until it hears of another, and only then n2 seeks to succeed it. *)
Takeover ==
    /\ node[n3].term = 2 => node[n3].vote = None
    /\ node[n1].role = "PreCandidate" => node[n1].term = 1
    /\ node[n1].role = "Candidate" => node[n1].term = 2
    /\ node[n1].term = 2 => node[n1].role /= "Follower"
    /\ node[n2].role /= "Follower" => node[n2].leader = n1 \/ node[n2].term = 3
    /\ \A m \in messages : m.kind = "RequestVote" => m.term < 3  \* What follows is in ci.cfg.

\* Only the leader saves its state; n3 gets it.
LeadersCompact == node[n2].base = 0 /\ node[n3].base \in {0, node[n1].base}

\* Where a model has more states than anyone waits for: breadth first, so many, then an end.
Enough == TLCGet("distinct") < 10500000 \/ TLCSet("exit", TRUE)
=============================================================================
