// SPDX-License-Identifier: MIT
/*
 * A card that interrupts from two processors at once. For each line that it reads, "ioctl COUNT" or
 * "eventfd COUNT", each of two threads, on a processor of its own, sends COUNT messages, round the
 * even or the odd vectors; "both COUNT" is the same of all vectors. Then the line is printed. The
 * end of the input is the end of the card.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz_card.h"

#define VECTORS		8
#define THREADS		2

static struct card card = { .lock = PTHREAD_MUTEX_INITIALIZER, .patience = ~0U };
static int events[VECTORS];
static char kind[16];
static unsigned long count;
static pthread_barrier_t together;

static void send_one(unsigned int vector)
{
	struct softcard_interrupt request = {
		.kind = SOFTCARD_INTERRUPT_MSIX, .vector = vector,
	};
	uint64_t one = 1;

	if (kind[0] == 'e') {
		if (write(events[vector], &one, sizeof(one)) != sizeof(one))
			err(1, "an eventfd");
	} else if (ioctl(card.fd, SOFTCARD_INTERRUPT, &request)) {
		err(1, "an interrupt");
	}
}

static void *inject(void *argument)
{
	unsigned int number = (uintptr_t)argument;
	cpu_set_t processor;

	CPU_ZERO(&processor);
	CPU_SET(number, &processor);
	pthread_setaffinity_np(pthread_self(), sizeof(processor), &processor);
	pthread_barrier_wait(&together);
	for (unsigned long i = 0; i < count; i++)
		send_one(kind[0] == 'b' ? i % VECTORS : (i * THREADS + number) % VECTORS);
	return NULL;
}

static void *serve_all(void *argument)
{
	struct pollfd waiting = { .fd = card.fd, .events = POLLIN };
	uint64_t random = 1;

	for (;;) {
		if (serve(&card, &random) || ioctl(card.fd, SOFTCARD_ARM, 0))
			continue;
		if (poll(&waiting, 1, -1) == 1 && waiting.revents & POLLHUP)
			return NULL;
	}
}

static void plug(void)
{
	struct softcard_create create = { .functions = 1, .atomic_timeout_us = 1000000 };
	struct softcard_function_info info = {
		.bar_size = { 4096 }, .msix_vectors = VECTORS, .msix_capability = MSIX,
		.msix_table_offset = 0x800, .msix_pba_offset = 0xc00, .msi_vectors = 1,
		.msi_capability = MSI, .express_capability = EXPRESS, .power_capability = PM,
	};
	struct softcard_plug plug = {};
	int device = open("/dev/softcard", O_RDWR | O_CLOEXEC);

	card.fd = ioctl(device, SOFTCARD_CREATE, &create);
	if (device < 0 || card.fd < 0 || ioctl(card.fd, SOFTCARD_SET_FUNCTION, &info))
		err(1, "no card");
	card.ring = mmap(NULL, sizeof(*card.ring), PROT_READ | PROT_WRITE, MAP_SHARED, card.fd, 0);
	if (card.ring == MAP_FAILED)
		err(1, "the ring");
	right_config(card.config[0], card.writable[0], &info);
	if (ioctl(card.fd, SOFTCARD_PLUG, &plug))
		err(1, "not plugged in");
}

static void set_events(void)
{
	for (int i = 0; i < VECTORS; i++) {
		struct softcard_eventfd request = { .vector = i };

		events[i] = request.fd = eventfd(0, 0);
		if (ioctl(card.fd, SOFTCARD_SET_EVENTFD, &request))
			err(1, "an eventfd");
	}
}

int main(void)
{
	pthread_t server, threads[THREADS];
	uintptr_t i;

	plug();
	set_events();
	pthread_create(&server, NULL, serve_all, NULL);
	pthread_barrier_init(&together, NULL, THREADS);
	while (scanf("%15s %lu", kind, &count) == 2) {
		for (i = 0; i < THREADS; i++)
			pthread_create(&threads[i], NULL, inject, (void *)i);
		for (i = 0; i < THREADS; i++)
			pthread_join(threads[i], NULL);
		printf("%s %lu\n", kind, count);
		fflush(stdout);
	}
	ioctl(card.fd, SOFTCARD_UNPLUG, 0);
	pthread_join(server, NULL);
	return 0;
}
