// SPDX-License-Identifier: MIT
/*
 * Times register reads over vfio-user: connects to servers' sockets, then sends 4-byte REGION_READs
 * one after the other, to each server in turn, round by round. Prints JSON: for each server a list
 * of rounds, each with the minimum, the median and the 90th percentile in nanoseconds.
 *
 *	vfio_user ROUNDS COUNT SOCKET REGION OFFSET [SOCKET REGION OFFSET]...
 */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

enum { VERSION = 1, REGION_READ = 9, REGION_WRITE = 10 };
enum { TYPE = 0xf, REPLY = 1, ERROR = 0x20 };
enum { CONFIG = 7, COMMAND_REGISTER = 4, MEMORY_SPACE = 2 };
enum { MAX_SERVERS = 8, WARM_UP = 500 };

struct header {
	uint16_t id, command;
	uint32_t size, flags, error;
} __attribute__((packed));

struct access {
	struct header header;
	uint64_t offset;
	uint32_t region, count, data;
} __attribute__((packed));

struct server {
	const char *path;
	uint32_t region;
	uint64_t offset;
	int fd;
	uint16_t id;
};

static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, errno ? strerror(errno) : "not as expected");
	exit(1);
}

static void ask(struct server *server, void *request, size_t size, void *reply, size_t room)
{
	struct header *header = request, *got = reply;
	ssize_t count;

	header->id = ++server->id;
	header->size = size;
	if (send(server->fd, request, size, 0) != (ssize_t)size)
		die("send");
	count = recv(server->fd, reply, room, 0);
	if (count < (ssize_t)sizeof(*got) || got->size != count || got->id != server->id ||
	    (got->flags & TYPE) != REPLY || got->flags & ERROR)
		die(server->path);
}

static void open_server(struct server *server)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct {
		struct header header;
		uint16_t major, minor;
		char data[64];
	} __attribute__((packed)) version = {
		.header = { .command = VERSION },
		.data = "{\"capabilities\":{\"max_msg_fds\":8}}",
	};
	struct access enable = {
		.header = { .command = REGION_WRITE },
		.offset = COMMAND_REGISTER, .region = CONFIG, .count = 2, .data = MEMORY_SPACE,
	};
	char reply[1024];

	if (strlen(server->path) >= sizeof(address.sun_path))
		die(server->path);
	strcpy(address.sun_path, server->path);
	server->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (server->fd < 0 || connect(server->fd, (struct sockaddr *)&address, sizeof(address)))
		die(server->path);
	ask(server, &version, sizeof(version) - sizeof(version.data) + strlen(version.data) + 1,
	    reply, sizeof(reply));
	ask(server, &enable, sizeof(enable) - 2, reply, sizeof(reply));
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void measure(struct server *server, uint64_t *times, long count)
{
	struct access request = {
		.header = { .command = REGION_READ },
		.offset = server->offset, .region = server->region, .count = 4,
	};
	struct access reply;

	for (long i = -WARM_UP; i < count; i++) {
		uint64_t start = now();

		ask(server, &request, offsetof(struct access, data), &reply, sizeof(reply));
		if (i >= 0)
			times[i] = now() - start;
	}
	qsort(times, count, sizeof(*times), compare);
}

int main(int argc, char **argv)
{
	struct server servers[MAX_SERVERS];
	int servers_count = (argc - 3) / 3;
	long rounds, count;
	uint64_t *times, (*found)[MAX_SERVERS][3];

	if (argc < 6 || argc % 3 || servers_count > MAX_SERVERS) {
		fprintf(stderr, "usage: %s ROUNDS COUNT SOCKET REGION OFFSET ...\n", argv[0]);
		return 2;
	}
	rounds = atol(argv[1]);
	count = atol(argv[2]);
	times = calloc(count, sizeof(*times));
	found = calloc(rounds, sizeof(*found));
	if (!times || !found)
		die("memory");
	for (int i = 0; i < servers_count; i++) {
		servers[i] = (struct server){
			.path = argv[3 + 3 * i],
			.region = atoi(argv[4 + 3 * i]),
			.offset = strtoull(argv[5 + 3 * i], NULL, 0),
		};
		open_server(&servers[i]);
	}
	for (long round = 0; round < rounds; round++) {
		for (int i = 0; i < servers_count; i++) {
			measure(&servers[i], times, count);
			found[round][i][0] = times[0];
			found[round][i][1] = times[count / 2];
			found[round][i][2] = times[count * 9 / 10];
		}
	}
	printf("[");
	for (int i = 0; i < servers_count; i++) {
		printf("%s[", i ? "," : "");
		for (long round = 0; round < rounds; round++)
			printf("%s{\"min\":%" PRIu64 ",\"p50\":%" PRIu64 ",\"p90\":%" PRIu64 "}",
			       round ? "," : "", found[round][i][0], found[round][i][1],
			       found[round][i][2]);
		printf("]");
	}
	printf("]\n");
	return 0;
}
