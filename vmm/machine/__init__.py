"""What runs: the hypervisor, domains, vCPUs, memory, clocks and interrupts."""
