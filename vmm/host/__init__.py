"""This machine: event loops, sockets, helper programs, consoles' other ends, the log."""
