//! Tests of the whole node and of what it writes: against pinned bytes, against a broker that
//! forges, replays and redirects, and against members that lie.

mod export;
mod formation;
mod frames;
mod golden;
mod hint;
mod hostile;
mod leaving;
mod lies;
mod meeting;
mod mishaps;
mod observers;
mod presence;
mod requests;
mod rotation;
mod steer;
mod stories;
mod twin;
mod versions;
mod witness;
mod world;
