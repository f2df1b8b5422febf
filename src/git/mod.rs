//! The config repo: fetched, believed, read, and written back to as notes.
