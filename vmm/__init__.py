"""pyvmm: a virtual machine monitor that shows guests a Xen-compatible ABI on KVM."""
