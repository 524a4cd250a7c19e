// SPDX-License-Identifier: GPL-2.0-only
/* Loading and unloading. */
#include <linux/module.h>

#include "softcard.h"

static int __init softcard_init(void)
{
	int err;

	if (IS_ENABLED(CONFIG_PREEMPT_RT)) {
		pr_err("softcard: a kernel with PREEMPT_RT cannot wait for a card's program in interrupts: boot another one\n");
		return -EOPNOTSUPP;
	}
	err = softcard_card_init();
	if (err)
		return err;
	err = softcard_irq_init();
	if (err)
		goto exit_card;
	err = softcard_pci_init();
	if (err)
		goto exit_irq;
	err = softcard_trap_init();
	if (err)
		goto exit_pci;
	err = softcard_map_init();
	if (err)
		goto exit_trap;
	err = softcard_power_init();
	if (err)
		goto exit_map;
	err = softcard_user_init();
	if (err)
		goto exit_power;
	return 0;

exit_power:
	softcard_power_exit();
exit_map:
	softcard_map_exit();
exit_trap:
	softcard_trap_exit();
exit_pci:
	softcard_pci_exit();
exit_irq:
	softcard_irq_exit();
exit_card:
	softcard_card_exit();
	return err;
}

static void __exit softcard_exit(void)
{
	softcard_user_exit();
	softcard_power_exit();
	softcard_map_exit();
	softcard_trap_exit();
	softcard_pci_exit();
	softcard_irq_exit();
	softcard_card_exit();
}

module_init(softcard_init);
module_exit(softcard_exit);
MODULE_DESCRIPTION("PCI cards whose behaviour is a program");
MODULE_AUTHOR("softcard");
MODULE_LICENSE("GPL");
