"""GDB's remote serial protocol: a guest under a debugger."""
