//! The operator: turns EncryptedVolumes into work for node agents, keeps their keys in the tenants' projects, and gives
//! a key to a node when, and only when, that node shall have the volume.

pub mod keymanager;
