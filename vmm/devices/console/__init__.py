"""The consoles of a guest: the PV console, the hypervisor's, and channels."""
