"""Shared folders: the 9pfs back end, between the guest's rings and a 9P2000.L server."""
