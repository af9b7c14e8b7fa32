//! What the unit tests begin with.

use crate::configuration::{Configuration, Settings};
use crate::effect::Durable;
use crate::entry::{Entry, HardState, Payload};
use crate::id::{Index, NodeKey, Term};

/// The voters 1 to `voters`.
pub(crate) fn configuration(voters: u128) -> Configuration {
    let voters = (1..=voters).map(|n| (NodeKey(n), format!("n{n}")));
    Configuration::of(voters.collect(), Settings::default())
}

/// The disk of a voter of a cluster just formed: term 1, the formation record, and nothing else.
pub(crate) fn formed(voters: u128) -> Durable {
    let (index, term) = (Index(1), Term(1));
    Durable {
        hard_state: HardState {
            term,
            voted_for: None,
        },
        snapshot: None,
        entries: vec![Entry {
            index,
            term,
            payload: Payload::Configuration(configuration(voters)),
        }],
    }
}
