"""Turning files into a startable guest: images, ELF notes, start_info, ACPI tables."""
