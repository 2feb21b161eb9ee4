"""The commands: one file each, one table of options."""
