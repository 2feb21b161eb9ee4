"""Virtio devices on PCI: the hardware of the initial domain, over the same files and networks as the Xen back ends."""
