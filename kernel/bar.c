// SPDX-License-Identifier: GPL-2.0-only
/*
 * Accesses to BARs: which function an address belongs to, and who answers. The kernel answers for
 * the tables of MSI-X and for plain memory; all else goes to the card's program.
 */
#include <linux/mm.h>
#include <linux/rculist.h>

#include "softcard.h"

static bool softcard_has(const struct softcard *card, phys_addr_t phys)
{
	unsigned int i;

	for (i = 0; i < SOFTCARD_WINDOWS; i++)
		if (phys >= card->window[i]->start && phys <= card->window[i]->end)
			return true;
	return false;
}

bool softcard_owns(phys_addr_t phys)
{
	struct softcard *card;
	bool found = false;

	rcu_read_lock();
	list_for_each_entry_rcu(card, &softcard_list, node) {
		if (softcard_has(card, phys)) {
			found = true;
			break;
		}
	}
	rcu_read_unlock();
	return found;
}

struct softcard_function *softcard_find_bar(phys_addr_t phys, unsigned int *bar, u64 *offset)
{
	struct softcard_function *function, *found = NULL;
	struct softcard *card;
	unsigned long flags;
	unsigned int i, j;

	list_for_each_entry_rcu(card, &softcard_list, node) {
		if (!softcard_has(card, phys))
			continue;
		for (i = 0; i < card->function_count && !found; i++) {
			function = card->function[i];
			raw_spin_lock_irqsave(&function->irq_lock, flags);
			for (j = 0; function->pdev && j < SOFTCARD_BARS; j++) {
				struct resource *res = &function->pdev->resource[j];

				if (!(res->flags & IORESOURCE_MEM) || phys < res->start ||
				    phys > res->end)
					continue;
				*bar = j;
				*offset = phys - res->start;
				found = function;
				break;
			}
			raw_spin_unlock_irqrestore(&function->irq_lock, flags);
		}
		break;
	}
	return found;
}

static struct softcard_memory *softcard_memory_of(struct softcard_function *function,
						  unsigned int bar, u64 offset)
{
	struct softcard_memory *memory;

	list_for_each_entry(memory, &function->memories, node)
		if (memory->bar == bar && offset >= memory->offset &&
		    offset - memory->offset < memory->size)
			return memory;
	return NULL;
}

static void *softcard_memory_at(struct softcard_function *function, unsigned int bar, u64 offset,
				unsigned int size, bool write)
{
	struct softcard_memory *memory = softcard_memory_of(function, bar, offset);
	u64 at;

	/* An access over the end of a page is rare, and can go the long way. */
	if (!memory || (write && memory->shadow) || offset_in_page(offset) + size > PAGE_SIZE)
		return NULL;
	at = offset - memory->offset;
	return page_address(memory->page[at >> PAGE_SHIFT]) + offset_in_page(at);
}

struct page *softcard_bar_page(struct softcard_function *function, unsigned int bar, u64 offset)
{
	struct softcard_memory *memory = softcard_memory_of(function, bar, offset);

	if (!memory || memory->shadow || !softcard_answers(function))
		return NULL;
	return memory->page[(offset - memory->offset) >> PAGE_SHIFT];
}

/**
 * softcard_bar_read - a driver's read
 * @function: whose BAR
 * @bar: which
 * @offset: in it
 * @size: 1, 2, 4 or 8
 */
u64 softcard_bar_read(struct softcard_function *function, unsigned int bar, u64 offset,
		      unsigned int size)
{
	struct softcard_op op = {
		.code = SOFTCARD_OP_READ,
		.function = function->number,
		.bar = bar,
		.size = size,
		.offset = offset,
	};
	u64 value = 0;
	bool answered;
	void *memory;

	if (READ_ONCE(function->card->dead))
		return softcard_all_ones(size);
	if (softcard_irq_read(function, bar, offset, size, &value))
		return value;
	memory = softcard_memory_at(function, bar, offset, size, false);
	if (!memory)
		return softcard_ask(function->card, &op, &answered);
	if (!softcard_answers(function))
		return softcard_all_ones(size);
	switch (size) {
	case 1:
		return READ_ONCE(*(u8 *)memory);
	case 2:
		return READ_ONCE(*(u16 *)memory);
	case 4:
		return READ_ONCE(*(u32 *)memory);
	}
	return READ_ONCE(*(u64 *)memory);
}

void softcard_bar_write(struct softcard_function *function, unsigned int bar, u64 offset,
			unsigned int size, u64 value)
{
	struct softcard_op op = {
		.code = SOFTCARD_OP_WRITE,
		.function = function->number,
		.bar = bar,
		.size = size,
		.offset = offset,
		.value = value & softcard_all_ones(size),
	};
	void *memory;

	if (READ_ONCE(function->card->dead) ||
	    softcard_irq_write(function, bar, offset, size, value))
		return;
	memory = softcard_memory_at(function, bar, offset, size, true);
	if (!memory)
		softcard_post(function->card, &op);
	else if (softcard_answers(function))
		memcpy(memory, &value, size);
}
