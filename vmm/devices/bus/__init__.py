"""How devices meet their guest: ports, addresses, PCI, and xenbus."""
