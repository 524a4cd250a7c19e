// SPDX-License-Identifier: GPL-2.0-only
/*
 * The configuration space of a function. Accesses go to the card; what the kernel has to know of
 * them (masks, resets, whether BARs answer) is looked at on the way, and what Linux must not
 * believe is put right.
 */
#include <linux/pci.h>

#include "softcard.h"

/* What the kernel keeps of a function is as after a reset. */
void softcard_function_reset(struct softcard_function *function)
{
	WRITE_ONCE(function->memory_enabled, false);
	WRITE_ONCE(function->awake, true);
	softcard_irq_reset(function);
}

/* What a driver's write changes in what the kernel answers by itself. */
static void softcard_config_watch(struct softcard_function *function, unsigned int where,
				  unsigned int size, u32 value)
{
	const struct softcard_function_info *info = &function->info;
	unsigned int power = info->power_capability + PCI_PM_CTRL;
	unsigned int control = info->express_capability + PCI_EXP_DEVCTL + 1;

	if (softcard_covers(where, size, PCI_COMMAND))
		WRITE_ONCE(function->memory_enabled,
			   value >> (8 * (PCI_COMMAND - where)) & PCI_COMMAND_MEMORY);
	if (info->power_capability && softcard_covers(where, size, power))
		WRITE_ONCE(function->awake,
			   !(value >> (8 * (power - where)) & PCI_PM_CTRL_STATE_MASK));
	if (info->express_capability && softcard_covers(where, size, control) &&
	    value >> (8 * (control - where)) & PCI_EXP_DEVCTL_BCR_FLR >> 8)
		softcard_function_reset(function);
}

/* Replaces those bits of @mask of the register at @at that a read of @size bytes is about. */
static u32 softcard_replace(u32 value, unsigned int offset, unsigned int size, unsigned int at,
			    u32 bits, u32 mask)
{
	unsigned int i;

	for (i = 0; i < size; i++) {
		unsigned int from = 8 * (offset + i - at), to = 8 * i;

		if (offset + i < at || offset + i >= at + 4)
			continue;
		value &= ~((mask >> from & 0xff) << to);
		value |= ((bits & mask) >> from & 0xff) << to;
	}
	return value;
}

/* What the card's program told the module holds, whatever the card says of it later. */
static u32 softcard_config_correct(struct softcard_function *function, unsigned int where,
				   unsigned int size, u32 value)
{
	const struct softcard_function_info *info = &function->info;
	unsigned int msix = info->msix_capability;

	/* Linux looks for the other half of the last BAR, too. */
	value = softcard_replace(value, where, size, PCI_BASE_ADDRESS_5, 0,
				 PCI_BASE_ADDRESS_MEM_TYPE_64);
	if (!info->msix_vectors)
		return value;
	/* Linux would write a table to wherever the card says that it is. */
	value = softcard_replace(value, where, size, msix, (u32)(info->msix_vectors - 1) << 16,
				 PCI_MSIX_FLAGS_QSIZE << 16);
	value = softcard_replace(value, where, size, msix + PCI_MSIX_TABLE,
				 info->msix_table_offset | info->msix_table_bar, ~0U);
	return softcard_replace(value, where, size, msix + PCI_MSIX_PBA,
				info->msix_pba_offset | info->msix_pba_bar, ~0U);
}

/**
 * softcard_function_read - a configuration read
 * @function: which
 * @where: within its configuration space
 * @size: 1, 2 or 4
 *
 * Who holds pci_lock, as readers in sysfs do, cannot sleep; on a single processor nobody would
 * answer then, and it gets what was last seen.
 */
u32 softcard_function_read(struct softcard_function *function, unsigned int where,
			   unsigned int size)
{
	struct softcard_op op = {
		.code = SOFTCARD_OP_CONFIG_READ,
		.function = function->number,
		.size = size,
		.offset = where,
	};
	bool answered;
	u32 value;

	value = softcard_ask(function->card, &op, &answered);
	if (answered)
		memcpy(function->config + where, &value, size);
	else if (!READ_ONCE(function->card->dead))
		memcpy(&value, function->config + where, size);
	value = softcard_config_correct(function, where, size, value);
	return softcard_irq_config_read(function, where, size, value);
}

/* A configuration write, which is posted. */
void softcard_function_write(struct softcard_function *function, unsigned int where,
			     unsigned int size, u32 value)
{
	struct softcard_op op = {
		.code = SOFTCARD_OP_CONFIG_WRITE,
		.function = function->number,
		.size = size,
		.offset = where,
		.value = value,
	};

	softcard_config_watch(function, where, size, value);
	softcard_irq_config_write(function, where, size, value);
	softcard_post(function->card, &op);
}
