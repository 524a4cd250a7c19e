// SPDX-License-Identifier: MIT
/*
 * Calls /dev/softcard and descriptors of cards in every state with what is right but for a field,
 * with noise, and with addresses that lead nowhere, from several threads, while Linux enumerates
 * cards whose configuration space and ring are no better.
 *
 *	fuzz SEED CALLS THREADS [errors]
 *
 * prints how many calls ended in which way. With "errors", cards send error messages: Linux up to now
 * leaks a card that says so but does not show an error in its registers (aer_process_err_devices()).
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fuzz_card.h"

#define CARDS		24
#define THREADS		16
#define ERRNOS		256
#define MEMORY		(64UL << 12)
/*
 * Where the memory for ranges and DMA is: far from all else, since addresses near it are asked for
 * too, and the module reads and writes there what the program may.
 */
#define ALONE		((void *)0x100000000000)
#define SEGMENTS	4
#define READ_TIMEOUT_MS	20
/* Enumerating a card takes as long as tens of thousands of refusals. */
#define PLUG_ONE_IN	8000

struct worker {
	pthread_t thread;
	uint64_t random;
	struct softcard_segment *segments;
	unsigned long calls;
	unsigned long ended[ERRNOS];	/* by errno; 0 where the call was taken */
	void *kept;			/* what was mapped last, or NULL */
	size_t kept_size;
};

static struct card cards[CARDS];
static struct worker workers[THREADS];
static int device, scratch;
static unsigned long calls_each;
static bool sends_errors;
static _Atomic bool finished;
/* For ranges and DMA; what is read-only; and an end of memory. */
static uint8_t *memory, *constant, *edge;

static long counted(struct worker *worker, long result)
{
	worker->ended[result < 0 ? errno % ERRNOS : 0]++;
	worker->calls++;
	return result;
}

static uint64_t boundary(uint64_t *random)
{
	static const uint64_t values[] = {
		0, 1, 2, 3, 7, 8, 9, 15, 16, 31, 32, 63, 64, 65, 255, 256, 2047, 2048, 4095, 4096,
		8192, 65535, 65536, 0x7fffffff, 0x80000000, 0xffffffff, 1ULL << 39, 1ULL << 40,
		1ULL << 41, 1ULL << 63, ~0ULL, ~0ULL - 4095, 0x7ffffffff000, 0xffff888000000000,
		0xffffffff81000000, 0xfee00000, 1000000,
	};
	uint64_t value = values[below(random, sizeof(values) / sizeof(values[0]))];

	return one_in(random, 8) ? next_random(random) : value + (one_in(random, 4) ? 1 : 0);
}

/* Changes a field, of whatever size. */
static void mutate(uint64_t *random, void *what, size_t size)
{
	size_t width = 1 << below(random, 4);
	uint64_t value = boundary(random);

	if (width <= size)
		memcpy((uint8_t *)what + below(random, size / width) * width, &value, width);
}

static void *somewhere_bad(uint64_t *random)
{
	switch (below(random, 6)) {
	case 0:
		return NULL;
	case 1:
		return (void *)0xffff888000001000;
	case 2:
		return (void *)0x8000000000000000;
	case 3:
		return (void *)boundary(random);
	case 4:
		return edge - below(random, 64);
	}
	return constant;
}

/* An ioctl with a struct: mostly somewhere, and now and then nowhere. */
static long call(struct worker *worker, int fd, unsigned long command, void *what, size_t size)
{
	uint64_t *random = &worker->random;
	void *at = what;

	if (one_in(random, 24))
		at = somewhere_bad(random);
	if (one_in(random, 24))
		command ^= 1UL << below(random, 32);
	else if (one_in(random, 24))
		at = memcpy(edge - size, what, size);
	/* What others leave there may be right. */
	if (command == SOFTCARD_SEND_ERROR && !sends_errors)
		at = what;
	return counted(worker, ioctl(fd, command, at));
}

static void right_function(uint64_t *random, struct softcard_function_info *info)
{
	unsigned int bar;

	memset(info, 0, sizeof(*info));
	info->function = below(random, 3);
	info->bar_size[0] = 1ULL << (12 + below(random, 8));
	for (bar = 1; bar < SOFTCARD_BARS; bar++)
		if (one_in(random, 3))
			info->bar_size[bar] = 1ULL << (4 + below(random, one_in(random, 6) ? 38 : 18));
	info->msix_vectors = 1 + below(random, 64);
	info->msix_capability = MSIX;
	/* They may overlap. */
	info->msix_table_offset = 8 * below(random, 300);
	info->msix_pba_offset = 8 * below(random, 500);
	info->msi_vectors = 1 << below(random, 6);
	info->msi_capability = MSI;
	info->msi_mask = MSI + 16;
	info->express_capability = EXPRESS;
	info->power_capability = PM;
}

static void create(struct worker *worker, struct card *card)
{
	uint64_t *random = &worker->random;
	struct softcard_create create = {
		.functions = 1 + below(random, one_in(random, 8) ? 8 : 3),
		.read_timeout_ms = READ_TIMEOUT_MS,
		.atomic_timeout_us = 1000,
	};
	bool right = !one_in(random, 4);
	int fd;

	if (!right)
		mutate(random, &create, sizeof(create));
	/* An empty place is filled; otherwise the card goes at once. */
	pthread_mutex_lock(&card->lock);
	fd = counted(worker, ioctl(device, SOFTCARD_CREATE, &create));
	if (fd >= 0 && card->fd < 0) {
		card->ring = mmap(NULL, sizeof(*card->ring), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (card->ring == MAP_FAILED)
			err(1, "the ring of a new card");
		card->tail = 0;
		card->manner = one_in(random, 2) ? RIGHT : below(random, MANNERS);
		card->patience = one_in(random, 6) ? below(random, 300) : ~0U;
		card->vandalism = one_in(random, 6) ? 1 + below(random, 100) : 0;
		card->fd = fd;
	} else if (fd >= 0) {
		close(fd);
	}
	pthread_mutex_unlock(&card->lock);
}

static void remove_card(struct worker *worker, struct card *card)
{
	pthread_mutex_lock(&card->lock);
	if (card->fd >= 0) {
		bool first = one_in(&worker->random, 2);

		if (first)
			munmap(card->ring, sizeof(*card->ring));
		counted(worker, close(card->fd));
		if (!first)
			munmap(card->ring, sizeof(*card->ring));
		card->fd = -1;
	}
	pthread_mutex_unlock(&card->lock);
}

static void set_function(struct worker *worker, struct card *card, int fd)
{
	struct softcard_function_info info;
	bool right = one_in(&worker->random, 3);

	right_function(&worker->random, &info);
	if (!right)
		mutate(&worker->random, &info, sizeof(info));
	if (call(worker, fd, SOFTCARD_SET_FUNCTION, &info, sizeof(info)))
		return;
	pthread_mutex_lock(&card->lock);
	make_config(card, &worker->random, info.function % SOFTCARD_FUNCTIONS, &info);
	pthread_mutex_unlock(&card->lock);
}

/* All that is needed for plugging in, in its order. */
static void plug(struct worker *worker, struct card *card, int fd)
{
	uint64_t *random = &worker->random;
	struct softcard_plug plug = {
		.link_speed = below(random, 7), .link_width = below(random, 33),
	};

	for (unsigned int number = 0; number < SOFTCARD_FUNCTIONS; number++) {
		struct softcard_function_info info;

		right_function(random, &info);
		info.function = number;
		if (!counted(worker, ioctl(fd, SOFTCARD_SET_FUNCTION, &info))) {
			pthread_mutex_lock(&card->lock);
			make_config(card, random, number, &info);
			pthread_mutex_unlock(&card->lock);
		}
	}
	call(worker, fd, SOFTCARD_PLUG, &plug, sizeof(plug));
}

static void add_range(struct worker *worker, int fd)
{
	uint64_t *random = &worker->random;
	struct softcard_range range = {
		.bar = below(random, 2), .kind = below(random, 2),
		.offset = 4096 * below(random, 8), .size = 4096 * (1 + below(random, 4)),
		.memory = (uintptr_t)memory + 4096 * below(random, 60),
	};

	if (!one_in(random, 4))
		mutate(random, &range, sizeof(range));
	call(worker, fd, SOFTCARD_ADD_RANGE, &range, sizeof(range));
}

static void interrupt(struct worker *worker, int fd)
{
	uint64_t *random = &worker->random;
	struct softcard_interrupt interrupt = {
		.kind = below(random, 4), .vector = below(random, 4),
	};
	struct softcard_error error = { .severity = below(random, 3) };
	struct softcard_error wrong = { .severity = 3 + below(random, 4), .reserved = below(random, 2) };

	if (one_in(random, 2))
		mutate(random, &interrupt, sizeof(interrupt));
	call(worker, fd, SOFTCARD_INTERRUPT, &interrupt, sizeof(interrupt));
	if (one_in(random, 50)) {
		if (sends_errors && one_in(random, 2))
			wrong = error;
		call(worker, fd, SOFTCARD_SEND_ERROR, &wrong, sizeof(wrong));
	}
}

static void inject(struct worker *worker, int fd)
{
	uint64_t *random = &worker->random;
	struct softcard_eventfd request = {
		.kind = below(random, 2), .vector = below(random, 4), .fd = -1,
	};
	uint64_t count = one_in(random, 4) ? boundary(random) : 1;
	int event = eventfd(0, EFD_NONBLOCK | (one_in(random, 4) ? EFD_SEMAPHORE : 0));

	if (event < 0)
		return;
	if (!one_in(random, 4))
		request.fd = event;
	else if (one_in(random, 2))
		request.fd = one_in(random, 2) ? fd : device;
	if (one_in(random, 3))
		mutate(random, &request, sizeof(request));
	if (one_in(random, 4))
		counted(worker, write(event, &count, sizeof(count)));
	call(worker, fd, SOFTCARD_SET_EVENTFD, &request, sizeof(request));
	counted(worker, write(event, &count, sizeof(count)));
	close(event);
}

static uint64_t known_address(uint64_t *random, const struct card *card)
{
	return card->known[below(random, KNOWN)] + (one_in(random, 4) ? below(random, 8192) : 0);
}

static void dma(struct worker *worker, const struct card *card, int fd)
{
	uint64_t *random = &worker->random;
	struct softcard_segment *segments = worker->segments;
	struct softcard_dma request = {
		.count = 1 + below(random, SEGMENTS), .segments = (uintptr_t)segments,
	};

	for (unsigned int i = 0; i < SEGMENTS; i++)
		segments[i] = (struct softcard_segment) {
			.address = one_in(random, 4) ? boundary(random) : known_address(random, card),
			.memory = (uintptr_t)memory + below(random, MEMORY / 2),
			.length = one_in(random, 8) ? boundary(random) : 1 + below(random, 8192),
			.flags = below(random, 2),
		};
	if (one_in(random, 3))
		mutate(random, segments, SEGMENTS * sizeof(*segments));
	if (one_in(random, 3))
		mutate(random, &request, sizeof(request));
	call(worker, fd, SOFTCARD_DMA, &request, sizeof(request));
}

/* By the kernel, to which it is an error where memory has gone, and no signal. */
static void touch(struct worker *worker, void *at)
{
	counted(worker, write(scratch, at, sizeof(uint64_t)));
	counted(worker, read(scratch, at, sizeof(uint64_t)));
}

static void map(struct worker *worker, const struct card *card, int fd)
{
	static const int protections[] = {
		PROT_NONE, PROT_READ, PROT_WRITE, PROT_READ | PROT_WRITE,
		PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE | PROT_EXEC,
	};
	uint64_t *random = &worker->random;
	size_t size = one_in(random, 4) ? below(random, 1 << 20) : sizeof(struct softcard_ring);
	off_t offset = one_in(random, 2) ? 0 : 4096 * (off_t)below(random, 50);
	int protection = protections[below(random, 6)];
	void *at;

	if (worker->kept) {
		touch(worker, worker->kept);
		counted(worker, munmap(worker->kept, worker->kept_size));
		worker->kept = NULL;
	}
	if (one_in(random, 8))
		offset = boundary(random) & ~4095ULL;
	if (one_in(random, 2)) {
		offset = SOFTCARD_MAP_COHERENT(one_in(random, 4) ? below(random, 3) : 0,
					       known_address(random, card) & ~4095ULL);
		size = 4096 * (1 + below(random, 4));
	}
	at = mmap(NULL, size, protection, one_in(random, 2) ? MAP_SHARED : MAP_PRIVATE, fd, offset);
	counted(worker, at == MAP_FAILED ? -1 : 0);
	if (at == MAP_FAILED)
		return;
	touch(worker, at);
	if (one_in(random, 2))
		counted(worker, mprotect(at, 4096, protections[below(random, 6)]));
	if (one_in(random, 4))
		counted(worker, madvise(at, size, MADV_DOFORK));
	if (size > 8192 && one_in(random, 4)) {
		/* In two pieces. */
		counted(worker, munmap((uint8_t *)at + 4096, size - 4096));
		size = 4096;
	}
	worker->kept = at;
	worker->kept_size = size;
}

static void look(struct worker *worker, int fd)
{
	struct pollfd waiting = { .fd = fd, .events = POLLIN | POLLOUT };
	uint8_t byte;
	int other;

	counted(worker, poll(&waiting, 1, 0));
	counted(worker, read(fd, &byte, 1));
	counted(worker, write(fd, &byte, 1));
	other = counted(worker, dup(fd));
	if (other >= 0) {
		counted(worker, ioctl(other, SOFTCARD_ARM, 0));
		counted(worker, close(other));
	}
}

static void fork_and_call(struct worker *worker, struct card *card, int fd)
{
	pid_t child = fork();

	if (!child) {
		struct worker mine = { .random = worker->random, .segments = worker->segments };

		for (int i = 0; i < 50; i++) {
			add_range(&mine, fd);
			interrupt(&mine, fd);
			dma(&mine, card, fd);
			map(&mine, card, fd);
		}
		/* Its descriptors may be the last ones. */
		_exit(0);
	}
	if (child > 0)
		waitpid(child, NULL, 0);
}

/* Any command, known or not, with any struct. */
static void noise(struct worker *worker, int fd)
{
	static const unsigned long commands[] = {
		SOFTCARD_GET_API, SOFTCARD_CREATE, SOFTCARD_SET_FUNCTION, SOFTCARD_ADD_RANGE,
		SOFTCARD_UNPLUG, SOFTCARD_PULL, SOFTCARD_ARM, SOFTCARD_WAKE, SOFTCARD_INTERRUPT,
		SOFTCARD_SET_EVENTFD, SOFTCARD_DMA, SOFTCARD_SEND_ERROR,
	};
	uint64_t *random = &worker->random;
	unsigned long command = commands[below(random, sizeof(commands) / sizeof(commands[0]))];
	uint8_t argument[256];
	long result;

	fill(random, argument, sizeof(argument));
	if (one_in(random, 2))
		memset(argument + 8, 0, sizeof(argument) - 8);
	if (one_in(random, 8))
		command = next_random(random);
	if (one_in(random, 2))
		fd = device;
	result = counted(worker, ioctl(fd, command, one_in(random, 3) ? boundary(random) :
				       (unsigned long)argument));
	/* Only that makes a descriptor. */
	if (result > 0 && fd == device && command == SOFTCARD_CREATE)
		close(result);
}

static void step(struct worker *worker)
{
	uint64_t *random = &worker->random;
	struct card *card = &cards[below(random, CARDS)];
	int fd = __atomic_load_n(&card->fd, __ATOMIC_RELAXED);

	if (one_in(random, PLUG_ONE_IN))
		return plug(worker, card, fd);
	switch (below(random, 400)) {
	case 0 ... 1:
		return create(worker, card);
	case 2:
		if (one_in(random, 16))
			remove_card(worker, card);
		return;
	case 3:
		if (one_in(random, 16))
			counted(worker, ioctl(fd, one_in(random, 2) ? SOFTCARD_UNPLUG : SOFTCARD_PULL, 0));
		return;
	case 4:
		if (one_in(random, 40))
			fork_and_call(worker, card, fd);
		return;
	case 5 ... 9:
		return look(worker, fd);
	case 10 ... 19:
		return map(worker, card, fd);
	case 20 ... 29:
		return inject(worker, fd);
	case 30 ... 99:
		return set_function(worker, card, fd);
	case 100 ... 159:
		return add_range(worker, fd);
	case 160 ... 219:
		return interrupt(worker, fd);
	case 220 ... 299:
		return dma(worker, card, fd);
	default:
		return noise(worker, fd);
	}
}

static void *work(void *argument)
{
	struct worker *worker = argument;

	while (worker->calls < calls_each)
		step(worker);
	return NULL;
}

static void *serve_all(void *argument)
{
	uint64_t *random = argument;

	while (!finished) {
		bool any = false;

		for (int i = 0; i < CARDS; i++) {
			if (pthread_mutex_trylock(&cards[i].lock))
				continue;
			if (cards[i].fd >= 0)
				any |= serve(&cards[i], random);
			pthread_mutex_unlock(&cards[i].lock);
		}
		if (!any)
			sched_yield();
	}
	return NULL;
}

int main(int argc, char **argv)
{
	static uint64_t server_random;
	unsigned long ended[ERRNOS] = {}, total = 0;
	uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
	unsigned int count = argc > 3 ? atoi(argv[3]) : 3, i, number;
	pthread_t server;

	sends_errors = argc > 4;
	if (count < 1 || count > THREADS)
		errx(2, "1 to %d threads", THREADS);
	calls_each = (argc > 2 ? strtoul(argv[2], NULL, 0) : 100000) / count + 1;
	device = open("/dev/softcard", O_RDWR | O_CLOEXEC);
	if (device < 0)
		err(1, "/dev/softcard");
	scratch = eventfd(0, EFD_NONBLOCK);
	if (scratch < 0)
		err(1, "an eventfd");
	memory = mmap(ALONE, MEMORY + 4096 * count, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	constant = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	edge = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED || constant == MAP_FAILED || edge == MAP_FAILED)
		err(1, "memory");
	edge += 4096;
	mprotect(edge, 4096, PROT_NONE);
	for (i = 0; i < CARDS; i++) {
		pthread_mutex_init(&cards[i].lock, NULL);
		cards[i].fd = -1;
	}
	server_random = seed * 0x9e3779b97f4a7c15ULL | 1;
	pthread_create(&server, NULL, serve_all, &server_random);
	for (i = 0; i < count; i++) {
		workers[i].random = (seed + i + 1) * 0xda942042e4dd58b5ULL | 1;
		workers[i].segments = (void *)(memory + MEMORY + 4096 * i);
		pthread_create(&workers[i].thread, NULL, work, &workers[i]);
	}
	for (i = 0; i < count; i++) {
		pthread_join(workers[i].thread, NULL);
		for (number = 0; number < ERRNOS; number++)
			ended[number] += workers[i].ended[number];
	}
	for (i = 0; i < CARDS; i++)
		remove_card(&workers[0], &cards[i]);
	finished = true;
	pthread_join(server, NULL);
	for (number = 0; number < ERRNOS; number++) {
		total += ended[number];
		if (ended[number])
			printf("%9lu %s\n", ended[number], number ? strerrorname_np(number) : "taken");
	}
	printf("%9lu calls\n", total);
	return 0;
}
