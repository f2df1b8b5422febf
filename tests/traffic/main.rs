//! Network, traffic and their undoing on the real kernel. Needs root and nft(8).
//!
//! Every test is a host of its own: its thread moves into a fresh network namespace, so tests disturb neither each
//! other nor the machine, and whatever is left in there at the end is a leak.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod batches;
mod drain;
mod firewalls;
mod handover;
mod host;
mod lifecycle;
mod load;
mod networks;
mod owned;
mod pressure;
mod quiet;
mod reach;
mod reloads;
mod six;
mod sockets;
mod spread;
mod switch;
