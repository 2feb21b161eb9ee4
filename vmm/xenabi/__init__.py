"""The Xen ABI as pure logic: no /dev/kvm, no threads, no sockets.  It speaks to the world through `interfaces`."""
