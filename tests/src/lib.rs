//! Integration tests against real guests, and the harness they share.
