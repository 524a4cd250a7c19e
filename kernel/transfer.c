// SPDX-License-Identifier: GPL-2.0-only
/*
 * The card's accesses to what drivers have mapped for DMA: copies to and from its program's memory.
 */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include "softcard.h"

/* What is copied while the lock is held, with interrupts off: a few microseconds. */
#define PIECE		SZ_16K
#define WORD		sizeof(u64)
#define BLOCK		(8 * WORD)

/*
 * Copies to and from the program, with page faults disabled; what they return is less than was
 * asked for where a page is not there.
 *
 * They go by words, each of which is accessed as a whole and in order: drivers look at the last
 * word of an entry to see that all of it is there. And a processor that is emulated, as that of a
 * virtual machine may be, takes a string instruction byte by byte. Whether the driver's memory is
 * fit for user space is not asked: drivers map slab objects, which hardened usercopy refuses.
 */
static size_t softcard_copy_to(void __user *to, const void *from, size_t length)
{
	size_t at = 0, i;

	if (!user_write_access_begin(to, length))
		return 0;
	for (; at < length && !IS_ALIGNED((unsigned long)from + at, WORD); at++)
		unsafe_put_user(READ_ONCE(*(u8 *)(from + at)), (u8 __user *)(to + at), fault);
	for (; length - at >= BLOCK; at += BLOCK) {
#pragma GCC unroll 8
		for (i = 0; i < BLOCK; i += WORD)
			unsafe_put_user(READ_ONCE(*(u64 *)(from + at + i)),
					(u64 __user *)(to + at + i), fault);
	}
	for (; length - at >= WORD; at += WORD)
		unsafe_put_user(READ_ONCE(*(u64 *)(from + at)), (u64 __user *)(to + at), fault);
	for (; at < length; at++)
		unsafe_put_user(READ_ONCE(*(u8 *)(from + at)), (u8 __user *)(to + at), fault);
fault:
	user_write_access_end();
	return at;
}

static size_t softcard_copy_from(void *to, const void __user *from, size_t length)
{
	size_t at = 0, i;
	u64 word;
	u8 byte;

	if (!user_read_access_begin(from, length))
		return 0;
	for (; at < length && !IS_ALIGNED((unsigned long)to + at, WORD); at++) {
		unsafe_get_user(byte, (const u8 __user *)(from + at), fault);
		WRITE_ONCE(*(u8 *)(to + at), byte);
	}
	for (; length - at >= BLOCK; at += BLOCK) {
#pragma GCC unroll 8
		for (i = 0; i < BLOCK; i += WORD) {
			unsafe_get_user(word, (const u64 __user *)(from + at + i), fault);
			WRITE_ONCE(*(u64 *)(to + at + i), word);
		}
	}
	for (; length - at >= WORD; at += WORD) {
		unsafe_get_user(word, (const u64 __user *)(from + at), fault);
		WRITE_ONCE(*(u64 *)(to + at), word);
	}
	for (; at < length; at++) {
		unsafe_get_user(byte, (const u8 __user *)(from + at), fault);
		WRITE_ONCE(*(u8 *)(to + at), byte);
	}
fault:
	user_read_access_end();
	return at;
}

/**
 * struct softcard_access - what is left of a segment
 * @card: whose
 * @space: bus addresses of the function
 * @address: bus address
 * @memory: the program's end
 * @length: bytes
 * @write: to the driver's memory
 */
struct softcard_access {
	const struct softcard *card;
	struct softcard_dma_space *space;
	u64 address;
	void __user *memory;
	size_t length;
	bool write;
};

/* Where @offset of a mapping is, and how many bytes from there follow one another. */
static void *softcard_place(const struct softcard_mapping *mapping, u64 offset, size_t *span)
{
	u64 from_page = offset_in_page(mapping->address) + offset;

	if (mapping->memory) {
		*span = mapping->size - offset;
		return mapping->memory + offset;
	}
	*span = PAGE_SIZE - offset_in_page(from_page);
	return mapping->page[from_page >> PAGE_SHIFT] + offset_in_page(from_page);
}

static size_t softcard_copy(const struct softcard_access *access, void *at, size_t done,
			    size_t length, void *bounce)
{
	if (!bounce) {
		if (access->write)
			return softcard_copy_from(at, access->memory + done, length);
		return softcard_copy_to(access->memory + done, at, length);
	}
	if (access->write)
		memcpy(at, bounce + done, length);
	else
		memcpy(bounce + done, at, length);
	return length;
}

/*
 * Moves at most @most bytes between the driver's memory, which the lock keeps mapped, and @bounce,
 * or the program's memory where that is NULL. Returns how many, -EPERM, or -ENXIO for a dead card.
 */
static long softcard_move(const struct softcard_access *access, void *bounce, size_t most)
{
	struct softcard_dma_space *space = access->space;
	struct softcard_mapping *mapping;
	unsigned long flags;
	long moved = -EPERM;
	u64 offset;

	read_lock_irqsave(&space->lock, flags);
	if (READ_ONCE(access->card->dead)) {
		moved = -ENXIO;
		goto out;
	}
	mapping = softcard_dma_find(space, access->address);
	if (!mapping || access->address < mapping->address ||
	    mapping->direction == (access->write ? DMA_TO_DEVICE : DMA_FROM_DEVICE))
		goto out;
	offset = access->address - mapping->address;
	/* All or nothing. */
	if (offset > mapping->size || access->length > mapping->size - offset)
		goto out;
	most = min(most, access->length);
	pagefault_disable();
	for (moved = 0; moved < most;) {
		size_t span, copied;
		void *at = softcard_place(mapping, offset + moved, &span);

		span = min_t(size_t, span, most - moved);
		copied = softcard_copy(access, at, moved, span, bounce);
		moved += copied;
		if (copied < span)
			break;
	}
	pagefault_enable();
out:
	read_unlock_irqrestore(&space->lock, flags);
	return moved;
}

/* The program's page is not there, and cannot be fetched under the lock. */
static long softcard_move_slowly(const struct softcard_access *access)
{
	size_t most = min_t(size_t, access->length,
			    PAGE_SIZE - offset_in_page((unsigned long)access->memory));
	void *bounce = (void *)__get_free_page(GFP_KERNEL_ACCOUNT);
	long moved;

	if (!bounce)
		return -ENOMEM;
	if (access->write && copy_from_user(bounce, access->memory, most)) {
		moved = -EFAULT;
		goto out;
	}
	moved = softcard_move(access, bounce, most);
	if (moved > 0 && !access->write && copy_to_user(access->memory, bounce, moved))
		moved = -EFAULT;
out:
	free_page((unsigned long)bounce);
	return moved;
}

/**
 * softcard_dma_transfer - the card accesses memory
 * @function: which
 * @address: bus address
 * @memory: the program's end of it
 * @length: bytes
 * @write: to the driver's memory
 *
 * Return: 0, -EPERM where the driver has not mapped it, -EFAULT where the program has not, -ENOMEM,
 * -EINTR where the program is being killed, -ENXIO where the card has been pulled meanwhile.
 */
int softcard_dma_transfer(struct softcard_function *function, u64 address, void __user *memory,
			  size_t length, bool write)
{
	struct softcard_access access = {
		.card = function->card,
		.space = function->dma,
		.address = address,
		.memory = memory,
		.length = length,
		.write = write,
	};

	if (address + length < address)
		return -EPERM;
	while (access.length) {
		long moved = softcard_move(&access, NULL, PIECE);

		if (!moved)
			moved = softcard_move_slowly(&access);
		if (moved < 0)
			return moved;
		access.address += moved;
		access.memory += moved;
		access.length -= moved;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}
