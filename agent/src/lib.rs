//! The guest agent: PID 1 of a confidential pod's VM.
