//! The image engine: a reference in, a verified root file system and its image config out.
