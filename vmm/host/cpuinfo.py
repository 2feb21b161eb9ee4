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


def lack_for_pae() -> str:
    """Why a guest with PAE, which every 32-bit Linux of a distribution has, cannot run here; empty where it can."""
    if not cpu_flags() & {"vmx", "svm"}:
        return "without VT-x and AMD-V its KVM emulates kernel code, and knows no PAE"
    if first_cpu("model name").startswith("QEMU TCG"):
        return "its CPU is emulated by QEMU, which sets accessed bits in PDPTEs, and KVM refuses those"
    return ""
