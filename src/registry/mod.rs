//! Images: from a registry to verified, durable layers on disk.
