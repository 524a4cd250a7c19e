// SPDX-License-Identifier: GPL-2.0-only
/*
 * Masks and pending bits (PCI Express Base 6.0, sections 6.1.4 and 7.7): which interrupt of the
 * card becomes a message at once, and which waits until a driver lets it pass.
 */
#include <linux/pci.h>

#include "softcard.h"

#define ENTRY_CONTROL		(PCI_MSIX_ENTRY_VECTOR_CTRL / 4)
#define ENTRY_WORDS		(PCI_MSIX_ENTRY_SIZE / 4)

static bool softcard_msix_held(struct softcard_function *function, unsigned int vector)
{
	return function->msix_masked ||
	       function->table[vector * ENTRY_WORDS + ENTRY_CONTROL] & PCI_MSIX_ENTRY_CTRL_MASKBIT;
}

/* Sends what a change of masks sets free; the caller holds @irq_lock. */
static void softcard_msix_update(struct softcard_function *function)
{
	unsigned int vector;

	for_each_set_bit(vector, function->pending, function->info.msix_vectors) {
		if (softcard_msix_held(function, vector))
			continue;
		__clear_bit(vector, function->pending);
		softcard_vector_signal(&function->msix[vector]);
	}
}

static void softcard_msi_update(struct softcard_function *function)
{
	unsigned long ready = function->msi_pending & ~function->msi_masks;
	unsigned int vector;

	for_each_set_bit(vector, &ready, SOFTCARD_MSI_VECTORS) {
		function->msi_pending &= ~BIT(vector);
		softcard_vector_signal(&function->msi[vector]);
	}
}

/* The table and the pending bits as a driver sees them. */

static bool softcard_inside(unsigned int bar, u64 offset, unsigned int its_bar, u64 start, u64 size)
{
	return bar == its_bar && offset >= start && offset < start + size;
}

bool softcard_irq_read(struct softcard_function *function, unsigned int bar, u64 offset,
		       unsigned int size, u64 *value)
{
	const struct softcard_function_info *info = &function->info;
	unsigned int vectors = info->msix_vectors;
	unsigned long flags;
	const u8 *from;
	u64 at, length;

	if (!vectors)
		return false;
	if (softcard_inside(bar, offset, info->msix_table_bar, info->msix_table_offset,
			    (u64)vectors * PCI_MSIX_ENTRY_SIZE)) {
		from = (const u8 *)function->table;
		at = offset - info->msix_table_offset;
		length = (u64)vectors * PCI_MSIX_ENTRY_SIZE;
	} else if (softcard_inside(bar, offset, info->msix_pba_bar, info->msix_pba_offset,
				   BITS_TO_LONGS(vectors) * sizeof(long))) {
		from = (const u8 *)function->pending;
		at = offset - info->msix_pba_offset;
		length = BITS_TO_LONGS(vectors) * sizeof(long);
	} else {
		return false;
	}
	*value = softcard_all_ones(size);
	if (!softcard_answers(function))
		return true;
	*value = 0;
	raw_spin_lock_irqsave(&function->irq_lock, flags);
	memcpy(value, from + at, min_t(u64, size, length - at));
	raw_spin_unlock_irqrestore(&function->irq_lock, flags);
	return true;
}

bool softcard_irq_write(struct softcard_function *function, unsigned int bar, u64 offset,
			unsigned int size, u64 value)
{
	const struct softcard_function_info *info = &function->info;
	u64 length = (u64)info->msix_vectors * PCI_MSIX_ENTRY_SIZE;
	unsigned long flags;
	u64 at;

	if (!info->msix_vectors)
		return false;
	if (softcard_inside(bar, offset, info->msix_pba_bar, info->msix_pba_offset,
			    BITS_TO_LONGS(info->msix_vectors) * sizeof(long)))
		return true;
	if (!softcard_inside(bar, offset, info->msix_table_bar, info->msix_table_offset, length))
		return false;
	if (!softcard_answers(function))
		return true;
	at = offset - info->msix_table_offset;
	raw_spin_lock_irqsave(&function->irq_lock, flags);
	memcpy((u8 *)function->table + at, &value, min_t(u64, size, length - at));
	softcard_msix_update(function);
	raw_spin_unlock_irqrestore(&function->irq_lock, flags);
	return true;
}

/* The configuration space: the enables and masks that the driver writes. */

void softcard_irq_config_write(struct softcard_function *function, unsigned int offset,
			       unsigned int size, u32 value)
{
	const struct softcard_function_info *info = &function->info;
	unsigned int control = info->msix_capability + PCI_MSIX_FLAGS + 1;
	unsigned long flags;
	unsigned int i;

	raw_spin_lock_irqsave(&function->irq_lock, flags);
	if (info->msix_vectors && softcard_covers(offset, size, control)) {
		u8 high = value >> (8 * (control - offset));

		function->msix_masked = high & (PCI_MSIX_FLAGS_MASKALL >> 8);
		softcard_msix_update(function);
	}
	if (info->msi_vectors && info->msi_mask) {
		for (i = 0; i < size; i++) {
			unsigned int byte = offset + i - info->msi_mask;

			if (offset + i < info->msi_mask || byte >= 4)
				continue;
			function->msi_masks &= ~(0xffU << (8 * byte));
			function->msi_masks |= (value >> (8 * i) & 0xff) << (8 * byte);
		}
		softcard_msi_update(function);
	}
	raw_spin_unlock_irqrestore(&function->irq_lock, flags);
}

/* A driver sees which messages wait. */
u32 softcard_irq_config_read(struct softcard_function *function, unsigned int offset,
			     unsigned int size, u32 value)
{
	const struct softcard_function_info *info = &function->info;
	unsigned int pending = info->msi_mask + 4;

	if (info->msi_vectors && info->msi_mask && offset >= pending && offset < pending + 4)
		return READ_ONCE(function->msi_pending) >> (8 * (offset - pending)) &
		       (u32)softcard_all_ones(size);
	return value;
}

/* A reset of the function: as after power-on, every vector is masked and none pending. */
void softcard_irq_reset(struct softcard_function *function)
{
	unsigned int vectors = function->info.msix_vectors, i;
	unsigned long flags;

	raw_spin_lock_irqsave(&function->irq_lock, flags);
	if (vectors) {
		memset(function->table, 0, (size_t)vectors * PCI_MSIX_ENTRY_SIZE);
		for (i = 0; i < vectors; i++)
			function->table[i * ENTRY_WORDS + ENTRY_CONTROL] =
				PCI_MSIX_ENTRY_CTRL_MASKBIT;
		bitmap_zero(function->pending, vectors);
	}
	function->msix_masked = false;
	function->msi_masks = 0;
	function->msi_pending = 0;
	function->intx_asserted = false;
	raw_spin_unlock_irqrestore(&function->irq_lock, flags);
}

/**
 * softcard_interrupt - the card interrupts
 * @function: which
 * @kind: SOFTCARD_INTERRUPT_*
 * @vector: of MSI-X or MSI
 */
int softcard_interrupt(struct softcard_function *function, unsigned int kind, unsigned int vector)
{
	unsigned long flags;
	int err = 0;

	raw_spin_lock_irqsave(&function->irq_lock, flags);
	switch (kind) {
	case SOFTCARD_INTERRUPT_MSIX:
		if (vector >= function->info.msix_vectors)
			err = -EINVAL;
		else if (softcard_msix_held(function, vector))
			__set_bit(vector, function->pending);
		else
			softcard_vector_signal(&function->msix[vector]);
		break;
	case SOFTCARD_INTERRUPT_MSI:
		if (vector >= function->info.msi_vectors)
			err = -EINVAL;
		else if (function->msi_masks & BIT(vector))
			function->msi_pending |= BIT(vector);
		else
			softcard_vector_signal(&function->msi[vector]);
		break;
	case SOFTCARD_INTERRUPT_ASSERT:
	case SOFTCARD_INTERRUPT_RELEASE:
		if (vector) {
			err = -EINVAL;
			break;
		}
		function->intx_asserted = kind == SOFTCARD_INTERRUPT_ASSERT;
		softcard_intx_update(function);
		break;
	default:
		err = -EINVAL;
	}
	raw_spin_unlock_irqrestore(&function->irq_lock, flags);
	return err;
}
