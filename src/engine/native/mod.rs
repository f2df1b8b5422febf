//! The built-in engine: containers of gitopsd's own, with nothing else to install.

pub mod net;
pub mod network;
