/* The same by the older callback vector, which the guest does not acknowledge. */
#define CALLBACK
#include "upcall.S"
