/*
 * What a kernel does for its processes, each as microseconds a time: `RESULT NAME VALUE` lines.  Static, the same binary in
 * every guest (`guestops [SECONDS SAMPLES]`); the operations are those of lmbench (L. McVoy, C. Staelin, 1996).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096

static double sample_s = 0.1;
static int wanted_samples = 3;
static int zero, null;
static volatile int signals;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void fail(const char *what)
{
	fprintf(stderr, "guestops: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* Repeat for the sample's time, in growing steps, and print what one takes in the least of some samples of many ticks. */
static void measure(const char *name, void (*once)(long times))
{
	long times = 1;
	double least = 0;

	for (int samples = 0; samples < wanted_samples;) {
		double start = now(), took;

		once(times);
		took = now() - start;
		if (took < sample_s) {
			times = took > sample_s / 50 ? (long)(times * 1.2 * sample_s / took) + 1 : times * 10;
			continue;
		}
		if (!samples++ || took / times < least)
			least = took / times;
	}
	printf("RESULT %s %.4f\n", name, least * 1e6);
	fflush(stdout);
}

static void null_call(long n)
{
	while (n--)
		syscall(SYS_getppid);
}

static void read_byte(long n)
{
	char byte;

	while (n--)
		if (read(zero, &byte, 1) != 1)
			fail("read");
}

static void write_byte(long n)
{
	while (n--)
		if (write(null, "x", 1) != 1)
			fail("write");
}

static void stat_file(long n)
{
	struct stat s;

	while (n--)
		if (stat("/bin/busybox", &s) != 0)
			fail("stat");
}

static void open_close(long n)
{
	while (n--)
		close(open("/bin/busybox", O_RDONLY));
}

static void handler(int number)
{
	(void)number;
	signals++;
}

static void signal_install(long n)
{
	struct sigaction action = { .sa_handler = handler };

	while (n--)
		sigaction(SIGUSR1, &action, NULL);
}

static void signal_handle(long n)
{
	pid_t self = getpid();

	signal(SIGUSR1, handler);
	while (n--)
		kill(self, SIGUSR1);
}

static void children(long n, const char *program, char *const arguments[])
{
	while (n--) {
		int status;
		pid_t child = fork();

		if (child < 0)
			fail("fork");
		if (child == 0) {
			if (program)
				execv(program, arguments);
			_exit(program != NULL);
		}
		if (waitpid(child, &status, 0) != child || status != 0)
			fail("child");
	}
}

static void fork_exit(long n)
{
	children(n, NULL, NULL);
}

static void fork_exec(long n)
{
	char *arguments[] = { "true", NULL };

	children(n, "/bin/busybox", arguments);
}

static void fork_sh(long n)
{
	char *arguments[] = { "sh", "-c", "/bin/true", NULL };

	children(n, "/bin/busybox", arguments);
}

/* A token goes round a ring of processes, each of which sums some memory of its own when it has it. */
static int processes;
static size_t footprint;

static void ring(long n)
{
	int first[2], in, out;
	static char area[64 << 10];
	volatile long sum = 0;
	char token = 0;
	pid_t started[16];

	if (pipe(first) != 0)
		fail("pipe");
	in = first[0];
	for (int i = 1; i < processes; i++) {
		int next[2];

		if (pipe(next) != 0)
			fail("pipe");
		started[i] = fork();
		if (started[i] == 0) {
			close(first[1]);
			close(next[0]);
			while (read(in, &token, 1) == 1) {
				for (size_t at = 0; at < footprint; at += 64)
					sum += area[at];
				if (write(next[1], &token, 1) != 1)
					_exit(1);
			}
			_exit(0);
		}
		close(next[1]);
		close(in);
		in = next[0];
	}
	out = first[1];
	for (long i = 0; i < n; i++) {
		if (write(out, &token, 1) != 1 || read(in, &token, 1) != 1)
			fail("token");
		for (size_t at = 0; at < footprint; at += 64)
			sum += area[at];
	}
	close(out);
	for (int i = 1; i < processes; i++)
		waitpid(started[i], NULL, 0);
	close(in);
}

static void back_and_forth(int mine, int theirs, long n)
{
	char byte = 0;
	pid_t child = fork();

	if (child == 0) {
		while (read(theirs, &byte, 1) == 1 && byte != 'q')
			if (write(theirs, &byte, 1) != 1)
				_exit(1);
		_exit(0);
	}
	while (n--)
		if (write(mine, &byte, 1) != 1 || read(mine, &byte, 1) != 1)
			fail("socket");
	if (write(mine, "q", 1) != 1)
		fail("socket");
	waitpid(child, NULL, 0);
}

static void unix_socket(long n)
{
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0)
		fail("socketpair");
	back_and_forth(ends[0], ends[1], n);
	close(ends[0]);
	close(ends[1]);
}

static void page_fault(long n)
{
	while (n > 0) {
		long pages = n < 1024 ? n : 1024;
		char *area = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (area == MAP_FAILED)
			fail("mmap");
		madvise(area, pages * PAGE, MADV_NOHUGEPAGE);
		for (long i = 0; i < pages; i++)
			area[i * PAGE] = 1;
		munmap(area, pages * PAGE);
		n -= pages;
	}
}

static void map_unmap(long n)
{
	while (n--) {
		void *area = mmap(NULL, 1 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (area == MAP_FAILED || munmap(area, 1 << 20) != 0)
			fail("mmap");
	}
}

static void create_delete(long n)
{
	while (n--) {
		int file = open("/tmp/file", O_CREAT | O_WRONLY, 0600);

		if (file < 0 || write(file, "x", 1) != 1 || close(file) != 0 || unlink("/tmp/file") != 0)
			fail("file");
	}
}

int main(int argc, char **argv)
{
	if (argc > 2) {
		sample_s = atof(argv[1]);
		wanted_samples = atoi(argv[2]);
	}
	static const int counts[] = { 2, 8, 16 };
	static const int sizes[] = { 0, 16, 64 };
	char name[64];

	zero = open("/dev/zero", O_RDONLY);
	null = open("/dev/null", O_WRONLY);
	measure("null-call", null_call);
	measure("read", read_byte);
	measure("write", write_byte);
	measure("stat", stat_file);
	measure("open-close", open_close);
	measure("signal-install", signal_install);
	measure("signal-handle", signal_handle);
	measure("fork", fork_exit);
	measure("exec", fork_exec);
	measure("sh", fork_sh);
	for (int i = 0; i < 3; i++)
		for (int j = 0; j < 3; j++) {
			processes = counts[i];
			footprint = sizes[j] << 10;
			snprintf(name, sizeof name, "switch-%dp-%dK", counts[i], sizes[j]);
			measure(name, ring);
		}
	processes = 2;
	footprint = 0;
	measure("unix-socket", unix_socket);
	measure("page-fault", page_fault);
	measure("mmap", map_unmap);
	measure("create-delete", create_delete);
	return 0;
}
