"""Who looks on: traces, statistics, the timeline, faults, GDB."""
