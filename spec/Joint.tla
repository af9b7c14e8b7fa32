-------------------------------- MODULE Joint -------------------------------
(***************************************************************************)
(* Changing who votes, by joint consensus (Raft 6).                        *)
(*                                                                         *)
(* A configuration counts from the moment that it is appended.  Voters are *)
(* only ever exchanged through a joint configuration, in which every       *)
(* decision needs a majority of the voters to come and one of those to go. *)
(* Its leader leaves it, whichever leader that is by then, once it is      *)
(* committed.                                                              *)
(*                                                                         *)
(* A node is a key.  Who loses its disk comes back as another node, which  *)
(* begins with nothing and without a vote.  Anyone may hear a leader and   *)
(* echo it: learners do that, so do observers that have just heard of the  *)
(* cluster, and what neither has is a vote that counts.                    *)
(*                                                                         *)
(* What is known from RaftOverMqtt is taken for granted: a follower takes  *)
(* over its leader's log in one step, and what a node says is on its disk. *)
(* Any node may campaign, and any may vote, at any moment, whether or not  *)
(* it knows itself to be a voter.                                          *)
(***************************************************************************)
EXTENDS Naturals, Sequences, FiniteSets

CONSTANTS
    Node,           \* All there will ever be, members or not.
    None,           \* No node: no vote.
    First,          \* Who leads term 1 at the start.
    Initial,        \* The voters at the start.
    Targets,        \* The sets of voters that may be proposed.
    Without,        \* The guards that are taken away: see Holds.
    \* Bounds of the model, not of the protocol:
    Candidates,     \* a sequence: who may campaign for which term; it ends with the last term,
    Fragile,        \* only these ever lose their disk,
    MaxChanges,     \* so many changes are there in a log,
    MaxLog          \* so long is it.

VARIABLES
    term, vote, role,  \* [Node -> ...], as in RaftOverMqtt
    log,      \* [Node -> its entries]
    commit,   \* [Node -> how far it knows its log to be committed]
    granted,  \* [Node -> who has voted for it, while it is a candidate]
    match,    \* [Node -> [Node -> up to where this one has acknowledged that leader's log]]
    wiped,    \* Nodes that lost their disk: they came back as someone else
    led,      \* <<term, node>>: all leaders there ever were
    applied   \* All entries ever committed, and in which term
vars == <<term, vote, role, log, commit, granted, match, wiped, led, applied>>

Holds(guard) == guard \notin Without
Guards == {
    "voters change through a joint configuration",
    "both halves of a joint configuration count",
    "who is no voter does not count",
    "the joint configuration is left when it is committed",
    "one change at a time",
    "a change waits for a commit in its leader's term",
    "a wiped node is a new node"}
ASSUME Without \subseteq Guards

Min(a, b) == IF a < b THEN a ELSE b
Max(a, b) == IF a > b THEN a ELSE b
Greatest(S) == CHOOSE x \in S : \A y \in S : y <= x

-----------------------------------------------------------------------------
(* A log.  An entry is a configuration or, without voters, anything else. *)

Entry(t)      == [term |-> t, voters |-> {}, outgoing |-> {}]
Joint(t, new, old) == [term |-> t, voters |-> new, outgoing |-> old]
Simple(t, new)     == [term |-> t, voters |-> new, outgoing |-> {}]

LastTerm(l) == IF l = <<>> THEN 0 ELSE l[Len(l)].term
IsUpToDate(l, other) ==
    \/ LastTerm(l) > LastTerm(other)
    \/ LastTerm(l) = LastTerm(other) /\ Len(l) >= Len(other)
Prefix(l, i) == SubSeq(l, 1, i)
IsPrefix(a, b) == Len(a) <= Len(b) /\ Prefix(b, Len(a)) = a

Configurations(l) == {i \in 1..Len(l) : l[i].voters /= {}}
NewestAt(l) == IF Configurations(l) = {} THEN 0 ELSE Greatest(Configurations(l))
Newest(l)   == IF NewestAt(l) = 0 THEN Simple(0, Initial) ELSE l[NewestAt(l)]

InForce(n) == Newest(log[n])

IsMajority(S, of) ==
    2 * Cardinality(IF Holds("who is no voter does not count") THEN S \cap of ELSE S)
        > Cardinality(of)

IsQuorum(S, c) ==
    /\ IsMajority(S, c.voters)
    /\ \/ c.outgoing = {}
       \/ IsMajority(S, c.outgoing)
       \/ ~Holds("both halves of a joint configuration count")

-----------------------------------------------------------------------------
(* Elections. *)

IsThere(n) == n \notin wiped \/ ~Holds("a wiped node is a new node")

Nothing(of) == [f \in Node |-> of]

\* n, in the term t and of that role, has nothing of an earlier leadership or candidacy.
Become(n, t, v, r) ==
    /\ term' = [term EXCEPT ![n] = t]
    /\ vote' = [vote EXCEPT ![n] = v]
    /\ role' = [role EXCEPT ![n] = r]

Campaign(n) ==
    /\ IsThere(n) /\ term[n] < Len(Candidates) /\ n \in Candidates[term[n] + 1]
    /\ Become(n, term[n] + 1, n, "Candidate")
    /\ granted' = [granted EXCEPT ![n] = {n}]
    /\ match' = [match EXCEPT ![n] = Nothing(0)]
    /\ UNCHANGED <<log, commit, wiped, led, applied>>

Vote(n, c) ==
    /\ role[c] = "Candidate" /\ IsThere(n) /\ term[n] < term[c] /\ IsUpToDate(log[c], log[n])
    /\ Become(n, term[c], c, "Follower")
    /\ granted' = [granted EXCEPT ![n] = {}, ![c] = @ \cup {n}]
    /\ match' = [match EXCEPT ![n] = Nothing(0)]
    /\ UNCHANGED <<log, commit, wiped, led, applied>>

Win(n) ==
    /\ role[n] = "Candidate" /\ IsQuorum(granted[n], InForce(n)) /\ Len(log[n]) < MaxLog
    /\ Become(n, term[n], n, "Leader")
    /\ log' = [log EXCEPT ![n] = Append(@, Entry(term[n]))]
    /\ granted' = [granted EXCEPT ![n] = {}]
    /\ led' = led \cup {<<term[n], n>>}
    /\ UNCHANGED <<commit, match, wiped, applied>>

-----------------------------------------------------------------------------
(* Leading. *)

(* f hears its leader and acknowledges the leader's log up to k.  That it may know more of what is
   committed only allows it more. *)
Hear(f, l, k) ==
    /\ f /= l /\ role[l] = "Leader" /\ IsThere(f)
    /\ \/ term[f] < term[l]
       \/ term[f] = term[l] /\ role[f] /= "Leader"
    /\ Become(f, term[l], IF term[f] = term[l] THEN vote[f] ELSE None, "Follower")
    /\ log' = [log EXCEPT ![f] = IF IsPrefix(Prefix(log[l], k), @) THEN @ ELSE Prefix(log[l], k)]
    /\ commit' = [commit EXCEPT ![f] = Max(@, Min(k, commit[l]))]
    /\ granted' = [granted EXCEPT ![f] = {}]
    /\ match' = [match EXCEPT ![f] = Nothing(0), ![l][f] = k]
    /\ UNCHANGED <<wiped, led, applied>>

Commit(n, i) ==
    /\ role[n] = "Leader" /\ commit[n] < i /\ i <= Len(log[n]) /\ log[n][i].term = term[n]
    /\ IsQuorum({f \in Node : f = n \/ match[n][f] >= i}, InForce(n))
    /\ commit' = [commit EXCEPT ![n] = i]
    /\ applied' = applied \o [k \in 1..Max(0, i - Len(applied)) |->
                                [entry |-> log[n][Len(applied) + k], by |-> term[n]]]
    /\ UNCHANGED <<term, vote, role, log, granted, match, wiped, led>>

Add(n, entry) ==
    /\ Len(log[n]) < MaxLog
    /\ log' = [log EXCEPT ![n] = Append(@, entry)]
    /\ UNCHANGED <<term, vote, role, commit, granted, match, wiped, led, applied>>

Changes(l) == Cardinality({i \in Configurations(l) : l[i].outgoing /= {}})

(* The newest configuration must be committed and whole.  The two guards share that: what this
   leader proposed is the one's, what it found in its log the other's. *)
Propose(n, target) ==
    LET at  == NewestAt(log[n])
        own == at > 0 /\ log[n][Max(1, at)].term = term[n]
    IN
    /\ role[n] = "Leader" /\ Changes(log[n]) < MaxChanges /\ target /= Newest(log[n]).voters
    /\ \/ commit[n] >= at /\ Newest(log[n]).outgoing = {}
       \/ ~Holds("one change at a time") /\ own
       \/ ~Holds("a change waits for a commit in its leader's term") /\ ~own
    /\ \/ \E i \in 1..commit[n] : log[n][i].term = term[n]
       \/ ~Holds("a change waits for a commit in its leader's term")
    /\ Add(n, IF Holds("voters change through a joint configuration")
                THEN Joint(term[n], target, Newest(log[n]).voters) ELSE Simple(term[n], target))

LeaveJoint(n) ==
    LET at == NewestAt(log[n]) IN
    /\ role[n] = "Leader" /\ Newest(log[n]).outgoing /= {}
    /\ commit[n] >= at \/ ~Holds("the joint configuration is left when it is committed")
    /\ Add(n, Simple(term[n], Newest(log[n]).voters))

\* The disk is lost, and the key with it.
Wipe(n) ==
    /\ n \in Fragile /\ n \notin wiped
    /\ Become(n, 0, None, "Follower")
    /\ log' = [log EXCEPT ![n] = <<>>]
    /\ commit' = [commit EXCEPT ![n] = 0]
    /\ granted' = [granted EXCEPT ![n] = {}]
    /\ match' = [match EXCEPT ![n] = Nothing(0)]
    /\ wiped' = wiped \cup {n}
    /\ UNCHANGED <<led, applied>>

-----------------------------------------------------------------------------

\* The first leader's opening entry is at all voters; whoever else there is has nothing.
Init ==
    /\ term = [n \in Node |-> IF n \in Initial THEN 1 ELSE 0]
    /\ vote = [n \in Node |-> IF n \in Initial THEN First ELSE None]
    /\ role = [n \in Node |-> IF n = First THEN "Leader" ELSE "Follower"]
    /\ log = [n \in Node |-> IF n \in Initial THEN <<Entry(1)>> ELSE <<>>]
    /\ commit = [n \in Node |-> IF n \in Initial THEN 1 ELSE 0]
    /\ granted = Nothing({})
    /\ match = [n \in Node |-> [f \in Node |-> IF n = First /\ f \in Initial THEN 1 ELSE 0]]
    /\ wiped = {}
    /\ led = {<<1, First>>}
    /\ applied = <<[entry |-> Entry(1), by |-> 1]>>

Next == \E n \in Node :
    \/ Campaign(n) \/ Win(n) \/ LeaveJoint(n) \/ Wipe(n)
    \/ \E c \in Node : Vote(n, c)
    \/ \E l \in Node : \E k \in match[l][n]..Min(match[l][n] + 1, Len(log[l])) : Hear(n, l, k)
    \/ \E i \in 1..Len(log[n]) : Commit(n, i)
    \/ \E target \in Targets : Propose(n, target)

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* What must hold. *)

ElectionSafety == \A a, b \in led : a[1] = b[1] => a = b

LogMatching ==
    \A a, b \in Node : \A i \in 1..Min(Len(log[a]), Len(log[b])) :
        log[a][i].term = log[b][i].term => Prefix(log[a], i) = Prefix(log[b], i)

StateMachineSafety ==
    \A n \in Node : \A i \in 1..commit[n] : i <= Len(applied) /\ log[n][i] = applied[i].entry

LeaderCompleteness ==
    \A n \in Node : role[n] = "Leader" =>
        \A i \in 1..Len(applied) : applied[i].by < term[n] =>
            i <= Len(log[n]) /\ log[n][i] = applied[i].entry

(* Once there is a newer leader, no quorum echoes a round of an older one: what Lease, and any
   read that asks a quorum, takes from the elections, whoever votes in which. *)
DeposedHasNoQuorum ==
    \A n \in Node : role[n] = "Leader" /\ (\E l \in led : l[1] > term[n]) =>
        ~IsQuorum({f \in Node : IsThere(f) /\ term[f] <= term[n]}, InForce(n))

\* A configuration shares a quorum with the one before it: only one half changes at a time.
StepsAreJoint ==
    \A n \in Node : \A i \in Configurations(log[n]) :
        LET before == Newest(Prefix(log[n], i - 1)) IN
        \/ before.outgoing = {} /\ log[n][i].outgoing = before.voters
        \/ before.outgoing /= {} /\ log[n][i] = Simple(log[n][i].term, before.voters)

=============================================================================
