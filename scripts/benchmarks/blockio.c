/* Reads or writes a block device for some seconds with so many requests in flight: prints how many a second.
 * blockio DEVICE read|write seq|random BYTES DEPTH SECONDS */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc != 7) return 2;
    int writes = !strcmp(argv[2], "write"), random_order = !strcmp(argv[3], "random");
    long bytes = atol(argv[4]), depth = atol(argv[5]);
    double seconds = atof(argv[6]);
    int fd = open(argv[1], (writes ? O_WRONLY : O_RDONLY) | O_DIRECT);
    uint64_t size = 0;
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size) < 0) { perror(argv[1]); return 1; }
    uint64_t blocks = size / bytes, next = 0, seed = 88172645463325252ull;
    aio_context_t context = 0;
    if (syscall(SYS_io_setup, depth, &context) < 0) { perror("io_setup"); return 1; }
    struct iocb requests[depth], *one;
    struct io_event events[depth];
    memset(requests, 0, sizeof requests);
    long flying = 0, done = 0, spare = depth, free_slots[depth];
    for (long i = 0; i < depth; i++) {
        void *buffer;
        if (posix_memalign(&buffer, 4096, bytes)) return 1;
        memset(buffer, 0x5a, bytes);
        requests[i].aio_fildes = fd;
        requests[i].aio_lio_opcode = writes ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
        requests[i].aio_buf = (uint64_t)buffer;
        requests[i].aio_nbytes = bytes;
        requests[i].aio_data = i;
        free_slots[i] = i;
    }
    double start = now(), end = start + seconds;
    while (now() < end || flying) {
        while (spare && now() < end) {
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
            one = &requests[free_slots[--spare]];
            one->aio_offset = (random_order ? seed % blocks : next++ % blocks) * bytes;
            if (syscall(SYS_io_submit, context, 1, &one) != 1) { perror("io_submit"); return 1; }
            flying++;
        }
        long got = syscall(SYS_io_getevents, context, 1, depth, events, NULL);
        for (long i = 0; i < got; i++) {
            if (events[i].res != bytes) { fprintf(stderr, "an I/O error\n"); return 1; }
            free_slots[spare++] = events[i].data;
        }
        flying -= got, done += got;
    }
    printf("%.2f\n", done / (now() - start));
    return 0;
}
