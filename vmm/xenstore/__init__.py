"""Xenstore: the tree, its transactions, watches and permissions, and the wire protocol, as pure logic.

Source: xen/docs/misc/xenstore.txt, xenstore-ring.txt; xen/include/public/io/xs_wire.h.
"""
