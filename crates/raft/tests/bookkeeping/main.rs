//! The arithmetic behind the protocol: quorums and changes as tables, a leader's counts and a catch-up
//! stream's window against twins that remember everything and count it all again.

mod change;
mod leading;
mod quorum;
mod streaming;
