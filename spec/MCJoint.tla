------------------------------- MODULE MCJoint ------------------------------
(* What TLC's configurations of Joint need beside constants. *)
EXTENDS Joint

CONSTANTS n1, n2, n3, n4

\* One voter for another.
Swap == {{n1, n2, n4}}

\* The same, and another, one after the other.
Swaps == {{n1, n2, n4}, {n1, n3, n4}}

\* The leader for another.
SwapLeader == {{n2, n3, n4}}

\* Who campaigns for which term.
OldOrNew == <<{}, {n3, n4}>>
Again    == <<{}, {n1}, {n3}>>
=============================================================================
