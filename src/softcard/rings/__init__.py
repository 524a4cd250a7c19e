"""What compiled engines of ring-based cards share.

Rings and buffers in the driver's memory, by bus address, from C: `windows.pxd` and `ring.pxd` are
for `cimport`. A card that has no compiled engine needs none of it.
"""
