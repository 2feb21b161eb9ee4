"""Guest-physical memory, and the walk of a guest's page tables."""
