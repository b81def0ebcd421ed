//! Builds guest images: a recipe and a kernel configuration in; kernel, initrd and manifest out.
