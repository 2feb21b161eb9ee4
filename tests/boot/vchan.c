/*
 * One end of a vchan (libxenvchan.h): bytes one way with a checksum, then single bytes there and back.
 *
 *   vchan server|client DOMID XENSTORE-PATH BYTES ROUNDS
 *
 * The server sends BYTES; the client answers with their checksum.  Both print what they saw, and the client the times.
 */
#include <libxenvchan.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 4096, RING = 65536, TRIES = 300 };

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void put(struct libxenvchan *channel, const void *data, size_t size)
{
	for (const char *at = data; size;) {
		int done = libxenvchan_write(channel, at, size);

		if (done <= 0)
			fail("libxenvchan_write");
		at += done, size -= done;
	}
}

static void get(struct libxenvchan *channel, void *data, size_t size)
{
	for (char *at = data; size;) {
		int done = libxenvchan_read(channel, at, size);

		if (done <= 0)
			fail("libxenvchan_read");
		at += done, size -= done;
	}
}

/* FNV-1a, going on from `hash`. */
static uint64_t sum(uint64_t hash, const unsigned char *data, size_t size)
{
	while (size--)
		hash = (hash ^ *data++) * 0x100000001b3ull;
	return hash;
}

int main(int argc, char **argv)
{
	struct libxenvchan *channel = NULL;
	unsigned char data[CHUNK];
	uint64_t hash = 0xcbf29ce484222325ull, theirs, word = 88172645463325252ull;
	double start;

	if (argc != 6)
		return 2;
	int server = !strcmp(argv[1], "server"), domid = atoi(argv[2]);
	long bytes = atol(argv[4]), rounds = atol(argv[5]);

	for (int try = 0; !channel && try < TRIES; try++) {
		channel = server ? libxenvchan_server_init(NULL, domid, argv[3], RING, RING)
				 : libxenvchan_client_init(NULL, domid, argv[3]);
		if (!channel)
			usleep(200000);
	}
	if (!channel)
		fail("the channel did not open");
	channel->blocking = 1;
	while (libxenvchan_is_open(channel) == 2)
		libxenvchan_wait(channel);
	start = now();
	for (long done = 0; done < bytes; done += CHUNK) {
		if (server) {
			for (size_t at = 0; at < CHUNK; at += 8) { /* xorshift: every byte counts */
				word ^= word << 13, word ^= word >> 7, word ^= word << 17;
				memcpy(data + at, &word, 8);
			}
			put(channel, data, CHUNK);
		} else {
			get(channel, data, CHUNK);
		}
		hash = sum(hash, data, CHUNK);
	}
	if (server) {
		get(channel, &theirs, sizeof theirs);
		printf("server: sent %ld bytes, sum %016lx, theirs %016lx\n", bytes, hash, theirs);
		for (long round = 0; round < rounds; round++) {
			get(channel, data, 1);
			put(channel, data, 1);
		}
		return theirs == hash ? 0 : 1;
	}
	printf("client: got %ld bytes, sum %016lx, in %.3f s\n", bytes, hash, now() - start);
	put(channel, &hash, sizeof hash);
	start = now();
	for (long round = 0; round < rounds; round++) {
		put(channel, data, 1);
		get(channel, data, 1);
	}
	if (rounds)
		printf("client: %ld bytes there and back, %.1f us each\n", rounds, (now() - start) / rounds * 1e6);
	return 0;
}
