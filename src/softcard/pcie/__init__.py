"""The PCI Express standard as values and pure functions: no I/O, no threads."""
