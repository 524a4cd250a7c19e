// SPDX-License-Identifier: GPL-2.0-only
/*
 * The machine goes to sleep, or down: programs are stopped before drivers have saved the state of
 * their devices, and nobody would answer those. So cards are pulled first.
 */
#include <linux/notifier.h>
#include <linux/reboot.h>
#include <linux/suspend.h>

#include "softcard.h"

static int softcard_sleeps(struct notifier_block *block, unsigned long action, void *data)
{
	if (action == PM_SUSPEND_PREPARE || action == PM_HIBERNATION_PREPARE)
		softcard_kill_all("the machine goes to sleep");
	return NOTIFY_DONE;
}

static int softcard_goes_down(struct notifier_block *block, unsigned long action, void *data)
{
	softcard_kill_all("the machine goes down");
	return NOTIFY_DONE;
}

static struct notifier_block softcard_sleep_notifier = {
	.notifier_call = softcard_sleeps,
};

static struct notifier_block softcard_reboot_notifier = {
	.notifier_call = softcard_goes_down,
};

int softcard_power_init(void)
{
	int err = register_pm_notifier(&softcard_sleep_notifier);

	if (err)
		return err;
	err = register_reboot_notifier(&softcard_reboot_notifier);
	if (err)
		unregister_pm_notifier(&softcard_sleep_notifier);
	return err;
}

void softcard_power_exit(void)
{
	unregister_reboot_notifier(&softcard_reboot_notifier);
	unregister_pm_notifier(&softcard_sleep_notifier);
}
