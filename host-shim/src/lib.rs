//! The host side: boots a pod's VM, reaches its agent, and gives people the nacre command.
