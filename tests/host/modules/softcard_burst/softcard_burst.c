// SPDX-License-Identifier: GPL-2.0-only
/*
 * Accesses a card in bursts and in every context. The test asks through debugfs:
 *
 * burst	write N: N writes of 1, 2, 3 ... as fast as they go
 * atomic	the same with interrupts off
 * other	as burst, to another register; at the same time, on another processor
 * latency	nanoseconds of a read, a line each: 1,000 with interrupts off
 * asleep	the same where a read may sleep
 */
#include <linux/debugfs.h>
#include <linux/io.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/seq_file.h>

#define REG_NUMBER	0x00
#define REG_ANSWER	0x04
#define REG_OTHER	0x08
#define SAMPLES		1000
#define BURST		8192

static void __iomem *regs;
static struct dentry *folder;

/* A million writes take longer than a processor may be kept: bursts are twice what a ring holds. */
static void breathe(u64 number)
{
	if (!(number % BURST))
		cond_resched();
}

static int burst_set(void *data, u64 count)
{
	u64 number;

	for (number = 1; number <= count; number++) {
		writel(number, regs + REG_NUMBER);
		breathe(number);
	}
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(burst_fops, NULL, burst_set, "%llu\n");

static int other_set(void *data, u64 count)
{
	u64 number;

	for (number = 1; number <= count; number++) {
		writel(number, regs + REG_OTHER);
		breathe(number);
	}
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(other_fops, NULL, other_set, "%llu\n");

static int irqs_off_set(void *data, u64 count)
{
	unsigned long flags;
	u64 number;

	for (number = 1; number <= count; number++) {
		local_irq_save(flags);
		writel(number, regs + REG_NUMBER);
		local_irq_restore(flags);
		breathe(number);
	}
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(irqs_off_fops, NULL, irqs_off_set, "%llu\n");

static int latency_show(struct seq_file *file, void *data)
{
	unsigned long flags;
	u64 before, after;
	int i;

	for (i = 0; i < SAMPLES; i++) {
		local_irq_save(flags);
		before = ktime_get_ns();
		readl(regs + REG_ANSWER);
		after = ktime_get_ns();
		local_irq_restore(flags);
		seq_printf(file, "%llu\n", after - before);
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(latency);

static int asleep_show(struct seq_file *file, void *data)
{
	u64 before, after;
	int i;

	for (i = 0; i < SAMPLES; i++) {
		before = ktime_get_ns();
		readl(regs + REG_ANSWER);
		after = ktime_get_ns();
		seq_printf(file, "%llu\n", after - before);
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(asleep);

static int burst_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	int err = pcim_enable_device(pdev);

	if (err)
		return err;
	regs = pcim_iomap(pdev, 0, 0);
	if (!regs)
		return -ENOMEM;
	folder = debugfs_create_dir(KBUILD_MODNAME, NULL);
	debugfs_create_file_unsafe("burst", 0200, folder, NULL, &burst_fops);
	debugfs_create_file_unsafe("atomic", 0200, folder, NULL, &irqs_off_fops);
	debugfs_create_file_unsafe("other", 0200, folder, NULL, &other_fops);
	debugfs_create_file("latency", 0400, folder, NULL, &latency_fops);
	debugfs_create_file("asleep", 0400, folder, NULL, &asleep_fops);
	return 0;
}

static void burst_remove(struct pci_dev *pdev)
{
	debugfs_remove(folder);
}

static const struct pci_device_id burst_ids[] = {
	{ PCI_DEVICE(0x1ded, 0x0b57) },
	{ }
};

static struct pci_driver burst_driver = {
	.name = KBUILD_MODNAME,
	.id_table = burst_ids,
	.probe = burst_probe,
	.remove = burst_remove,
};
module_pci_driver(burst_driver);
MODULE_DESCRIPTION("Accesses a softcard in bursts");
MODULE_LICENSE("GPL");
