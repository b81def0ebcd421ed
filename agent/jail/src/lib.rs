//! The container engine: an OCI runtime bundle in, a running, confined process out.
