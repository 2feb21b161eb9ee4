/* One TCP stream for some seconds.  tcpstream serve PORT; tcpstream send|receive ADDRESS PORT SECONDS: prints MiB/s. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 20];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static double move(int fd, int sends, double seconds) {
    double total = 0, start = now();
    while (!seconds || now() < start + seconds) {
        ssize_t n = sends ? send(fd, buffer, sizeof buffer, MSG_NOSIGNAL) : recv(fd, buffer, sizeof buffer, 0);
        if (n <= 0) break;
        total += n;
    }
    return total / (now() - start) / (1 << 20);
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (argc == 3) {
        address.sin_port = htons(atoi(argv[2]));
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (bind(fd, (void *)&address, sizeof address) || listen(fd, 1)) { perror("listen"); return 1; }
        for (;;) {
            int peer = accept(fd, NULL, NULL);
            char what;
            if (read(peer, &what, 1) == 1) move(peer, what == 'r', 0);
            close(peer);
        }
    }
    if (argc != 5) return 2;
    int sends = !strcmp(argv[1], "send");
    address.sin_port = htons(atoi(argv[3]));
    inet_pton(AF_INET, argv[2], &address.sin_addr);
    if (connect(fd, (void *)&address, sizeof address)) { perror("connect"); return 1; }
    if (write(fd, sends ? "s" : "r", 1) != 1) return 1;
    move(fd, sends, 1); /* the windows open */
    printf("%.3f\n", move(fd, sends, atof(argv[4])));
    return 0;
}
