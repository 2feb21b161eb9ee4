"""The chips of a PC, and the ports of a PVH guest."""
