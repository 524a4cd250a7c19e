"""A Linux to plug cards into: kernels, the root file system, running commands."""
