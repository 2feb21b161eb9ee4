/* The limit that the hypercall benchmark is held against: KVM_RUN in a loop, nothing answered. */
#include <linux/kvm.h>
#include <sys/ioctl.h>

/* Enter the guest `count` times; how many of them succeeded. */
long enter_many(int vcpu_fd, long count)
{
	long done = 0;

	while (done < count && ioctl(vcpu_fd, KVM_RUN, 0) == 0)
		done++;
	return done;
}
