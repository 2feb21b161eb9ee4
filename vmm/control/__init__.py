"""Talking to a guest that runs in another process: its control socket, and what commands say through it."""
