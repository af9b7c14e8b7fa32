-------------------------------- MODULE Lease -------------------------------
(***************************************************************************)
(* Leadership that one can rely on: leases on clocks that drift, lease     *)
(* epochs, release at a transfer, settings that change, lease reads.       *)
(*                                                                         *)
(* A leader is *exclusive* while a quorum has echoed a round that it sent  *)
(* no longer ago than the lease, on its own clock.  A new leader is not    *)
(* exclusive before it has waited so long that every older lease is over   *)
(* on the slowest clock while its own was the fastest.  It need not wait   *)
(* if the one before it gave its *lease epoch* up for good (released it)   *)
(* and no newer epoch was opened since.                                    *)
(*                                                                         *)
(* Time passes in ticks of real time, and each tick moves the clock of     *)
(* each node by anything that the drift allows, anew every time.  No clock *)
(* reading is kept: a leader has the time since it won, and the age of     *)
(* what each follower echoed, both on its own clock.  Both stop where more *)
(* of it changes nothing, so time has no bound.                            *)
(*                                                                         *)
(* What is known from RaftOverMqtt is taken for granted: a follower takes  *)
(* over its leader's log in one step, and what a node says is on its disk. *)
(* Wills, silence and TimeoutNow are one: any voter may campaign, and any  *)
(* may vote, at any moment.  A pause is a node that takes no step while    *)
(* its clock goes on; what it claims then is what its clock says.          *)
(***************************************************************************)
EXTENDS Integers, Sequences, FiniteSets

CONSTANTS
    Node,           \* The voters.
    None,           \* No node: no vote.
    First,          \* Who leads term 1 at the start.
    Slow, Fast,     \* How far a tick moves a clock at least and at most: (1-rho) to (1+rho)
    Settings,       \* What may be in force, a sequence of [lease, reads]; the first is at first.
    Without,        \* The guards that are taken away: see Holds.
    \* Bounds of the model, not of the protocol:
    Candidates,     \* a sequence: who may campaign for which term; it ends with the last term,
    MaxNumber,      \* so many epochs does a term have beside its first,
    MaxChanges      \* so many changes of the settings are there.

VARIABLES
    term, vote, role,  \* [Node -> ...], as in RaftOverMqtt
    log,       \* [Node -> its entries]
    commit,    \* [Node -> how far it knows its log to be committed]
    granted,   \* [Node -> who has voted for it, while it is a candidate]
    since,     \* [Node -> the time since it won, while it leads]
    age,       \* [Node -> [Node -> the age of the newest round that this one echoed to that leader]]
    match,     \* [Node -> [Node -> up to where this one has acknowledged that leader's log]]
    released,  \* [Node -> whether it has released its newest epoch]
    releases,  \* All releases ever sent. TimeoutNow carries them, late, doubled, or never.
    top,       \* The highest token that was ever claimed
    applied    \* The terms of all entries ever committed
vars == <<term, vote, role, log, commit, granted, since, age, match, released, releases, top, applied>>

Holds(guard) == guard \notin Without
Guards == {
    "a new leader waits",
    "the wait allows for the drift",
    "a lease runs from the sending of a round",
    "an epoch is claimed once its entry is committed",
    "a release counts for the newest epoch alone",
    "only an exclusive leader releases",
    "a released epoch is over",
    "a failed transfer opens an epoch",
    "the smallest lease is claimed",
    "a shorter lease counts when it is proposed",
    "the largest lease is waited out",
    "settings change after the wait",
    "lease reads begin when they are committed",
    "a new leader holds commits back"}
ASSUME Without \subseteq Guards

Min(a, b) == IF a < b THEN a ELSE b
Max(a, b) == IF a > b THEN a ELSE b
Least(S)    == CHOOSE x \in S : \A y \in S : x <= y
Greatest(S) == CHOOSE x \in S : \A y \in S : y <= x
IsQuorum(S) == 2 * Cardinality(S) > Cardinality(Node)

-----------------------------------------------------------------------------
(* A log.  An entry opens an epoch of its term, by number, or changes the settings. *)

Opening(t, number)  == [term |-> t, number |-> number, settings |-> 0]
Change(t, settings) == [term |-> t, number |-> -1, settings |-> settings]

LastTerm(l) == IF l = <<>> THEN 0 ELSE l[Len(l)].term
IsUpToDate(l, other) ==
    \/ LastTerm(l) > LastTerm(other)
    \/ LastTerm(l) = LastTerm(other) /\ Len(l) >= Len(other)
Prefix(l, i) == SubSeq(l, 1, i)
IsPrefix(a, b) == Len(a) <= Len(b) /\ Prefix(b, Len(a)) = a

\* Where a log's newest epoch opens; every log begins with one.
EpochAt(l) == Greatest({i \in 1..Len(l) : l[i].number >= 0})

\* The fencing token: strictly ordered as (term, number) is.
TokenOf(entry) == entry.term * (MaxNumber + 1) + entry.number
Token(n) == TokenOf(log[n][EpochAt(log[n])])

SettingsAt(l, i) ==
    LET changes == {k \in 1..i : l[k].settings > 0}
    IN  Settings[IF changes = {} THEN 1 ELSE l[Greatest(changes)].settings]

\* All that may be in force: from the committed one to the newest.
InForce(n) == {SettingsAt(log[n], i) : i \in commit[n]..Len(log[n])}

-----------------------------------------------------------------------------
(* Leases. *)

\* L(1+rho)/(1-rho), rounded up
Wait(lease) == IF Holds("the wait allows for the drift")
                 THEN (lease * Fast + Slow - 1) \div Slow ELSE lease

Leases   == {Settings[k].lease : k \in 1..Len(Settings)}
Ended    == Greatest(Leases)                            \* an age at which no lease holds
Waited   == Greatest({Wait(lease) : lease \in Leases})  \* a time at which no wait goes on

Lease(n) ==
    LET leases == {s.lease : s \in InForce(n)} IN
    IF ~Holds("a shorter lease counts when it is proposed") THEN SettingsAt(log[n], commit[n]).lease
    ELSE IF Holds("the smallest lease is claimed") THEN Least(leases) ELSE Greatest(leases)

HasWaited(n) ==
    LET waits == {Wait(s.lease) : s \in InForce(n)} IN
    \/ since[n] >= IF Holds("the largest lease is waited out") THEN Greatest(waits) ELSE Least(waits)
    \/ ~Holds("a new leader waits")

\* A leader is in its own quorum, now.
IsConfirmed(n) == IsQuorum({f \in Node : f = n \/ age[n][f] < Lease(n)})

IsExclusive(n) ==
    /\ role[n] = "Leader"
    /\ ~released[n] \/ ~Holds("a released epoch is over")
    /\ IsConfirmed(n)
    /\ HasWaited(n)
    /\ commit[n] >= EpochAt(log[n]) \/ ~Holds("an epoch is claimed once its entry is committed")

\* n may answer a read from what it has committed, asking nobody.
MayLeaseRead(n) ==
    /\ IF Holds("lease reads begin when they are committed")
         THEN \A s \in InForce(n) : s.reads ELSE \E s \in InForce(n) : s.reads
    /\ IsExclusive(n)

HoldsBack(n) ==
    /\ \E s \in InForce(n) : s.reads
    /\ ~HasWaited(n)
    /\ Holds("a new leader holds commits back")

-----------------------------------------------------------------------------
(* What all steps end with. *)

Exclusive == {n \in Node : IsExclusive(n)}

Note == top' = Greatest({top} \cup {Token(n) : n \in Exclusive}')

\* n, in the term t and of that role, has nothing of an earlier leadership or candidacy.
Become(n, t, v, r) ==
    /\ term' = [term EXCEPT ![n] = t]
    /\ vote' = [vote EXCEPT ![n] = v]
    /\ role' = [role EXCEPT ![n] = r]

Forget(n) ==
    /\ since' = [since EXCEPT ![n] = 0]
    /\ released' = [released EXCEPT ![n] = FALSE]

Nothing(of) == [f \in Node |-> of]

-----------------------------------------------------------------------------
(* Elections. *)

\* Who led until now stepped down before: that alone ends what it claims and allows nothing.
Campaign(n) ==
    /\ term[n] < Len(Candidates) /\ n \in Candidates[term[n] + 1]
    /\ Become(n, term[n] + 1, n, "Candidate") /\ Forget(n)
    /\ granted' = [granted EXCEPT ![n] = {n}]
    /\ age' = [age EXCEPT ![n] = Nothing(Ended)] /\ match' = [match EXCEPT ![n] = Nothing(0)]
    /\ UNCHANGED <<log, commit, releases, applied>>

(* The request may be old; that the vote arrives at once costs nothing, as the candidate may take
   its time to win. *)
Vote(n, c) ==
    /\ role[c] = "Candidate" /\ term[n] < term[c] /\ IsUpToDate(log[c], log[n])
    /\ Become(n, term[c], c, "Follower") /\ Forget(n)
    /\ granted' = [granted EXCEPT ![n] = {}, ![c] = @ \cup {n}]
    /\ age' = [age EXCEPT ![n] = Nothing(Ended)] /\ match' = [match EXCEPT ![n] = Nothing(0)]
    /\ UNCHANGED <<log, commit, releases, applied>>

(* A release may reach anyone at any time, its target or not: all that counts is what it names.
   Who has one makes use of it, for that only allows more. *)
IsReleased(n) ==
    IF Holds("a release counts for the newest epoch alone")
      THEN Token(n) \in releases ELSE releases /= {}

Win(n) ==
    /\ role[n] = "Candidate" /\ IsQuorum(granted[n])
    /\ Become(n, term[n], n, "Leader")
    /\ log' = [log EXCEPT ![n] = Append(@, Opening(term[n], 0))]
    /\ since' = [since EXCEPT ![n] = IF IsReleased(n) THEN Waited ELSE 0]
    /\ granted' = [granted EXCEPT ![n] = {}]
    /\ UNCHANGED <<commit, age, match, released, releases, applied>>

-----------------------------------------------------------------------------
(* Leading. *)

(* f hears a round of its leader and echoes it, and it holds the leader's log up to k.  All delays
   are left out here: a lease runs from the sending, so a later echo only makes a shorter claim;
   and a follower that knows of a later commit only claims more and waits less if it wins. *)
Hear(f, l, k) ==
    /\ f /= l /\ role[l] = "Leader"
    /\ \/ term[f] < term[l]
       \/ term[f] = term[l] /\ role[f] /= "Leader"
    /\ Become(f, term[l], IF term[f] = term[l] THEN vote[f] ELSE None, "Follower") /\ Forget(f)
    /\ log' = [log EXCEPT ![f] = IF IsPrefix(Prefix(log[l], k), @) THEN @ ELSE Prefix(log[l], k)]
    /\ commit' = [commit EXCEPT ![f] = Max(@, Min(k, commit[l]))]
    /\ granted' = [granted EXCEPT ![f] = {}]
    /\ age' = [age EXCEPT ![f] = Nothing(Ended), ![l][f] = 0]
    /\ match' = [match EXCEPT ![f] = Nothing(0), ![l][f] = k]
    /\ UNCHANGED <<releases, applied>>

\* An answer that was long under way.
HearAgain(f, l) ==
    /\ ~Holds("a lease runs from the sending of a round")
    /\ role[l] = "Leader" /\ age[l][f] < Ended
    /\ age' = [age EXCEPT ![l][f] = 0]
    /\ UNCHANGED <<term, vote, role, log, commit, granted, since, match, released, releases, applied>>

Commit(n, i) ==
    /\ role[n] = "Leader" /\ commit[n] < i /\ i <= Len(log[n]) /\ log[n][i].term = term[n]
    /\ IsQuorum({f \in Node : f = n \/ match[n][f] >= i})
    /\ ~HoldsBack(n)
    /\ commit' = [commit EXCEPT ![n] = i]
    /\ applied' = applied \o [k \in 1..Max(0, i - Len(applied)) |-> log[n][Len(applied) + k].term]
    /\ UNCHANGED <<term, vote, role, log, granted, since, age, match, released, releases>>

Changes(l) == Cardinality({k \in 1..Len(l) : l[k].settings > 0})

\* What a leader has waited for once is over, however long the wait would be from now on.
ChangeSettings(n, s) ==
    /\ role[n] = "Leader" /\ Changes(log[n]) < MaxChanges
    /\ Settings[s] /= SettingsAt(log[n], Len(log[n]))
    /\ commit[n] >= EpochAt(log[n]) /\ log[n][EpochAt(log[n])].term = term[n]
    /\ \A k \in commit[n] + 1..Len(log[n]) : log[n][k].settings = 0
    /\ HasWaited(n) \/ ~Holds("settings change after the wait")
    /\ log' = [log EXCEPT ![n] = Append(@, Change(term[n], s))]
    /\ since' = [since EXCEPT ![n] = IF HasWaited(n) THEN Waited ELSE @]
    /\ UNCHANGED <<term, vote, role, commit, granted, age, match, released, releases, applied>>

\* The leader gives its epoch up for good, and then says so in TimeoutNow.
Release(n) ==
    /\ role[n] = "Leader" /\ ~released[n]
    /\ IsExclusive(n) \/ ~Holds("only an exclusive leader releases")
    /\ released' = [released EXCEPT ![n] = TRUE]
    /\ releases' = releases \cup {Token(n)}
    /\ UNCHANGED <<term, vote, role, log, commit, granted, since, age, match, applied>>

\* The target was silent: the leader goes on in an epoch that nobody has released.
Resume(n) ==
    /\ role[n] = "Leader" /\ released[n] /\ log[n][EpochAt(log[n])].number < MaxNumber
    /\ released' = [released EXCEPT ![n] = FALSE]
    /\ log' = IF Holds("a failed transfer opens an epoch")
                THEN [log EXCEPT ![n] =
                        Append(@, Opening(term[n], log[n][EpochAt(log[n])].number + 1))]
                ELSE log
    /\ UNCHANGED <<term, vote, role, commit, granted, since, age, match, releases, applied>>

-----------------------------------------------------------------------------
(* Time.  Only leaders measure any. *)

Tick ==
    LET leaders == {n \in Node : role[n] = "Leader"} IN
    /\ \E rate \in [leaders -> {Slow, Fast}] :
         /\ since' = [n \in Node |-> IF n \in leaders THEN Min(Waited, since[n] + rate[n]) ELSE 0]
         /\ age' = [n \in Node |-> [f \in Node |->
                     IF n \in leaders THEN Min(Ended, age[n][f] + rate[n]) ELSE Ended]]
    /\ UNCHANGED <<term, vote, role, log, commit, granted, match, released, releases, applied>>

-----------------------------------------------------------------------------

\* The first leader's opening entry is everywhere, and nobody led before it.
Init ==
    /\ term = Nothing(1)
    /\ vote = Nothing(First)
    /\ role = [n \in Node |-> IF n = First THEN "Leader" ELSE "Follower"]
    /\ log = Nothing(<<Opening(1, 0)>>)
    /\ commit = Nothing(1)
    /\ granted = Nothing({})
    /\ since = [n \in Node |-> IF n = First THEN Waited ELSE 0]
    /\ age = Nothing(Nothing(Ended))
    /\ match = [n \in Node |-> IF n = First THEN Nothing(1) ELSE Nothing(0)]
    /\ released = Nothing(FALSE)
    /\ releases = {}
    /\ top = 0
    /\ applied = <<1>>

Next ==
    /\ \/ Tick
       \/ \E n \in Node :
            \/ Campaign(n) \/ Win(n) \/ Release(n) \/ Resume(n)
            \/ \E m \in Node : Vote(n, m) \/ HearAgain(n, m)
            \/ \E m \in Node : \E k \in match[m][n]..Min(match[m][n] + 1, Len(log[m])) : Hear(n, m, k)
            \/ \E i \in 1..Len(log[n]) : Commit(n, i)
            \/ \E s \in 1..Len(Settings) : ChangeSettings(n, s)
    /\ Note

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* What must hold. *)

\* At no moment are there two.
OneIsExclusive == Cardinality(Exclusive) <= 1

\* Nobody claims a token below one that was claimed before.
TokensAreOrdered == \A n \in Exclusive : Token(n) = top

\* Whatever was committed anywhere, a read by lease has seen it.  Any entry may be a write.
LeaseReadsAreCurrent == \A n \in Node : MayLeaseRead(n) => commit[n] = Len(applied)

\* What RaftOverMqtt says of logs holds here too: the steps taken at once did not hide it.
ElectionSafety ==
    \A a, b \in Node : role[a] = "Leader" /\ role[b] = "Leader" /\ term[a] = term[b] => a = b

StateMachineSafety ==
    \A n \in Node : \A i \in 1..commit[n] : i <= Len(applied) /\ log[n][i].term = applied[i]

=============================================================================
