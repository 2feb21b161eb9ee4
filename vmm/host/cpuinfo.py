"""What this machine says of its CPUs.  Source: proc(5), /proc/cpuinfo."""


def first_cpu(field: str) -> str:
    """What /proc/cpuinfo says of the first CPU under a name; empty where it says nothing."""
    try:
        with open("/proc/cpuinfo") as described:
            for line in described:
                name, _, value = line.partition(":")
                if name.rstrip() == field:
                    return value.strip()
    except OSError:
        pass
    return ""


def cpu_flags() -> set[str]:
    """The flags of the first CPU."""
    return set(first_cpu("flags").split())
