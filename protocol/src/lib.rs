//! The contract between host and guest: the Kata agent API, our own additions, and how to reach them.
