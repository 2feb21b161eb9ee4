"""A PCI bus for the initial domain: configuration space, BARs, MSI-X."""
