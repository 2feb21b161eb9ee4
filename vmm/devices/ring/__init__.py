"""Rings and pages that a guest has granted to the back ends."""
