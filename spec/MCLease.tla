------------------------------- MODULE MCLease ------------------------------
(* What TLC's configurations of Lease need beside constants. *)
EXTENDS Lease

CONSTANTS n1, n2, n3

Of(lease, reads) == [lease |-> lease, reads |-> reads]
Fixed       == <<Of(2, FALSE)>>
ShortLong   == <<Of(1, FALSE), Of(2, FALSE)>>
LongShort   == <<Of(2, FALSE), Of(1, FALSE)>>
Reads       == <<Of(2, TRUE)>>
ReadsOffOn  == <<Of(2, FALSE), Of(2, TRUE)>>
ReadsLonger == <<Of(1, TRUE), Of(2, TRUE)>>
Grow        == <<Of(1, FALSE), Of(2, TRUE)>>
Shrink      == <<Of(2, TRUE), Of(1, FALSE)>>

\* Who campaigns for which term.
Second == <<{}, {n2}>>
InTurn == <<{}, {n2}, {n3}>>

\* Where transfers have nothing to add.
NoTransfer == releases = {}
=============================================================================
