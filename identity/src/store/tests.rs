//! The store on real SQLite files in temporary directories.
