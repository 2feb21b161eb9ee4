"""Network cards: the vif back end, and what its packets come from and go to."""
