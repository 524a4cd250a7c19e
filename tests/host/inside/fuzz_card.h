/* SPDX-License-Identifier: MIT */
/* A card that is no good: what it answers while Linux enumerates it, and what it does to its ring. */
#ifndef FUZZ_CARD_H
#define FUZZ_CARD_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <linux/pci_regs.h>
#include <linux/softcard.h>

#define CONFIG		4096
#define MULTIFUNCTION	0x80
#define PM		0x40
#define MSI		0x50
#define MSIX		0x70
#define EXPRESS		0x80
#define EXTENDED	0x100
#define KNOWN		8

/* What the configuration space is like. */
enum manner { RIGHT, DAMAGED, RANDOM, FICKLE, LOOPING, MANNERS };

struct card {
	pthread_mutex_t lock;
	int fd;				/* -1 where there is none */
	struct softcard_ring *ring;
	uint32_t tail;
	enum manner manner;
	unsigned int patience;		/* answers that are left until it falls silent */
	unsigned int vandalism;		/* one answer in so many writes nonsense into the ring */
	uint64_t known[KNOWN];		/* bus addresses that the driver has told last */
	unsigned int learnt;
	uint8_t config[SOFTCARD_FUNCTIONS][CONFIG];
	uint8_t writable[SOFTCARD_FUNCTIONS][CONFIG];
};

/* xorshift64* */
static uint64_t next_random(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 0x2545f4914f6cdd1dULL;
}

static unsigned int below(uint64_t *random, unsigned int limit)
{
	return (next_random(random) >> 32) % limit;
}

static bool one_in(uint64_t *random, unsigned int count)
{
	return !below(random, count);
}

static void fill(uint64_t *random, void *memory, size_t size)
{
	for (size_t i = 0; i < size; i++)
		((uint8_t *)memory)[i] = next_random(random) >> 56;
}

static void put(uint8_t *space, unsigned int at, unsigned int size, uint32_t value)
{
	memcpy(space + at, &value, size);
}

/* A configuration space that fits what the kernel was told of the function. */
static void right_config(uint8_t *config, uint8_t *writable, const struct softcard_function_info *info)
{
	unsigned int bar;

	memset(config, 0, CONFIG);
	memset(writable, 0, CONFIG);
	put(config, PCI_VENDOR_ID, 4, 0xf0221ded);
	put(config, PCI_STATUS, 2, PCI_STATUS_CAP_LIST);
	put(config, PCI_CLASS_REVISION, 4, 0xff000000);
	put(config, PCI_INTERRUPT_PIN, 1, 1);
	put(config, PCI_CAPABILITY_LIST, 1, PM);
	put(config, PM, 4, 0x00030000 | MSI << 8 | PCI_CAP_ID_PM);
	put(config, MSI, 4, 0x01800000 | MSIX << 8 | PCI_CAP_ID_MSI);
	put(config, MSIX, 4, (uint32_t)(info->msix_vectors - 1) << 16 | EXPRESS << 8 | PCI_CAP_ID_MSIX);
	put(config, MSIX + 4, 4, info->msix_table_offset | info->msix_table_bar);
	put(config, MSIX + 8, 4, info->msix_pba_offset | info->msix_pba_bar);
	put(config, EXPRESS, 4, 0x00020000 | PCI_CAP_ID_EXP);
	put(config, EXTENDED, 4, 0x20010000 | PCI_EXT_CAP_ID_ERR);
	put(writable, PCI_COMMAND, 2, 0x0506);
	put(writable, MSI + 2, 2, 0x0071);
	put(writable, MSI + 4, 4, ~3U);
	put(writable, MSI + 8, 4, ~0U);
	put(writable, MSIX + 2, 2, 0xc000);
	put(writable, EXPRESS + PCI_EXP_DEVCTL, 2, 0x7fff);
	for (bar = 0; bar < SOFTCARD_BARS; bar++) {
		uint64_t size = info->bar_size[bar];
		bool wide = size >> 31 && bar + 1 < SOFTCARD_BARS && !info->bar_size[bar + 1];

		if (!size)
			continue;
		put(writable, PCI_BASE_ADDRESS_0 + 4 * bar, 4, ~(size - 1));
		if (!wide)
			continue;
		put(config, PCI_BASE_ADDRESS_0 + 4 * bar, 4,
		    PCI_BASE_ADDRESS_MEM_TYPE_64 | PCI_BASE_ADDRESS_MEM_PREFETCH);
		put(writable, PCI_BASE_ADDRESS_0 + 4 * ++bar, 4, ~(size - 1) >> 32);
	}
}

/* Drivers of USB controllers wait for them for seconds, while interrupts are off. */
static void no_usb(uint8_t *config)
{
	if (config[PCI_CLASS_DEVICE + 1] == 0x0c)
		config[PCI_CLASS_DEVICE + 1] = 0xff;
}

static inline void make_config(struct card *card, uint64_t *random, unsigned int function,
			const struct softcard_function_info *info)
{
	uint8_t *config = card->config[function], *writable = card->writable[function];
	unsigned int i;

	right_config(config, writable, info);
	config[PCI_HEADER_TYPE] = function || one_in(random, 2) ? MULTIFUNCTION : 0;
	switch (card->manner) {
	case DAMAGED:
		for (i = below(random, 16); i; i--) {
			unsigned int at = below(random, one_in(random, 2) ? 0x40 : 0x140);

			config[at] = next_random(random) >> 32;
			writable[at] = next_random(random) >> 32;
		}
		break;
	case RANDOM:
		fill(random, config, CONFIG);
		fill(random, writable, CONFIG);
		/* Every kind of header, and not often one that is none. */
		config[PCI_HEADER_TYPE] &= 0x83;
		break;
	case LOOPING:
		for (i = 0x40; i < 0x100; i += 4)
			put(config, i, 2, (0x40 + 4 * below(random, 48)) << 8 | below(random, 0x16));
		/* Not SR-IOV: for the last BAR of its functions Linux reads beyond what it has read. */
		for (i = EXTENDED; i < CONFIG; i += 4)
			put(config, i, 4, (EXTENDED + 4 * below(random, 960)) << 20 | 1 << 16 |
			    below(random, PCI_EXT_CAP_ID_SRIOV));
		break;
	default:
		break;
	}
	no_usb(config);
}

static uint64_t config_access(struct card *card, uint64_t *random, const struct softcard_op *op)
{
	uint8_t *config = card->config[op->function % SOFTCARD_FUNCTIONS];
	uint8_t *writable = card->writable[op->function % SOFTCARD_FUNCTIONS];
	uint64_t value = 0;

	for (unsigned int i = 0; i < op->size && op->offset + i < CONFIG; i++) {
		uint8_t *byte = &config[op->offset + i], mask = writable[op->offset + i];

		if (op->code == SOFTCARD_OP_CONFIG_WRITE)
			*byte = (*byte & ~mask) | (op->value >> 8 * i & mask);
		value |= (uint64_t)*byte << 8 * i;
	}
	/* Not the class, for which see no_usb(). */
	if (card->manner == FICKLE && one_in(random, 4) && op->offset >= PCI_CACHE_LINE_SIZE)
		value = next_random(random);
	return value;
}

static void vandalize(struct card *card, uint64_t *random)
{
	struct softcard_ring *ring = card->ring;

	switch (below(random, 5)) {
	case 0:
		ring->head = next_random(random);
		break;
	case 1:
		ring->tail = next_random(random);
		break;
	case 2:
		fill(random, &ring->ops[below(random, SOFTCARD_RING_ENTRIES)], sizeof(ring->ops[0]));
		break;
	case 3:
		fill(random, &ring->answers[below(random, SOFTCARD_SLOTS)], sizeof(ring->answers[0]));
		break;
	case 4:
		fill(random, ring, sizeof(*ring));
	}
}

/* The driver tells of its memory by its first register, and the kernel of what is coherent. */
static void learn(struct card *card, const struct softcard_op *op)
{
	if (op->code == SOFTCARD_OP_DMA_ADDED)
		card->known[card->learnt++ % KNOWN] = op->offset;
	else if (op->code == SOFTCARD_OP_WRITE && !op->offset)
		card->known[card->learnt++ % KNOWN] = op->value;
}

/* Serves what is in the ring; the caller holds the lock. Returns whether there was anything. */
static bool serve(struct card *card, uint64_t *random)
{
	struct softcard_ring *ring = card->ring;
	bool any = false;

	for (int i = 0; i < 64 && card->tail != __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE); i++) {
		struct softcard_op op = ring->ops[card->tail % SOFTCARD_RING_ENTRIES];
		bool reads = op.code == SOFTCARD_OP_READ || op.code == SOFTCARD_OP_CONFIG_READ;
		struct softcard_answer *answer = &ring->answers[op.slot % SOFTCARD_SLOTS];
		uint64_t value = op.code == SOFTCARD_OP_READ ? next_random(random) :
				 config_access(card, random, &op);

		any = true;
		learn(card, &op);
		if (reads && card->patience) {
			card->patience--;
			answer->value = value;
			__atomic_store_n(&answer->sequence, op.value, __ATOMIC_RELEASE);
			ioctl(card->fd, SOFTCARD_WAKE, op.slot);
		}
		__atomic_store_n(&ring->tail, ++card->tail, __ATOMIC_RELEASE);
		if (card->vandalism && one_in(random, card->vandalism))
			vandalize(card, random);
	}
	return any;
}

#endif
