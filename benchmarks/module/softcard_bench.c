// SPDX-License-Identifier: GPL-2.0-only
/*
 * Times accesses to softcard's benchmark card. Each file in debugfs runs one
 * measurement when it is read, and gives the nanoseconds of each sample, a
 * line each, without their median or any other judgement.
 */

#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/seq_file.h>

#define REG_PLAIN	0x00	/* no code of the card runs */
#define REG_HOOKED	0x04	/* a method of the card answers */
#define REG_DOORBELL	0x08	/* interrupts at once */
#define REG_DMA_ADDR	0x10
#define REG_DMA_LENGTH	0x18
#define REG_DMA_COMMAND	0x1c
#define DMA_TO_CARD	1
#define DMA_TO_HOST	2

#define DMA_SIZE	(1 << 20)
#define BATCH		256	/* posted writes of one sustained sample */
#define BURST		8	/* as many as fit the queue without waiting */
#define PATIENCE	NSEC_PER_SEC
#define LINE		24	/* characters of a sample, at most */

/**
 * struct bench - the one card
 * @pdev: its PCI device
 * @regs: BAR 0
 * @buffer: DMA memory, @bus its address
 * @folder: our debugfs folder
 * @rang: when the interrupt handler last ran, 0 when it has not yet
 */
struct bench {
	struct pci_dev *pdev;
	void __iomem *regs;
	void *buffer;
	dma_addr_t bus;
	struct dentry *folder;
	u64 rang;
};

static int samples = 2000;
module_param(samples, int, 0644);
MODULE_PARM_DESC(samples, "samples of each measurement");

static irqreturn_t bench_interrupt(int irq, void *data)
{
	struct bench *bench = data;

	WRITE_ONCE(bench->rang, ktime_get_ns());
	return IRQ_HANDLED;
}

/* Returns when the handler ran, in ns, or 0 when it has not run in time. */
static u64 bench_wait(struct bench *bench, u64 start)
{
	u64 rang;

	while (!(rang = READ_ONCE(bench->rang))) {
		if (ktime_get_ns() - start > PATIENCE)
			return 0;
		cpu_relax();
	}
	return rang;
}

static s64 mmio_read(struct bench *bench)
{
	u64 start = ktime_get_ns();

	ioread32(bench->regs + REG_PLAIN);
	return ktime_get_ns() - start;
}

static s64 mmio_read_hooked(struct bench *bench)
{
	u64 start = ktime_get_ns();

	ioread32(bench->regs + REG_HOOKED);
	return ktime_get_ns() - start;
}

/* The card has gone to sleep meanwhile. */
static s64 mmio_read_after_idle(struct bench *bench)
{
	usleep_range(2000, 2500);
	return mmio_read(bench);
}

static s64 mmio_write_sustained(struct bench *bench)
{
	u64 start = ktime_get_ns();
	int i;

	for (i = 0; i < BATCH; i++)
		iowrite32(i, bench->regs + REG_PLAIN);
	return (ktime_get_ns() - start) / BATCH;
}

static s64 mmio_write_burst(struct bench *bench)
{
	u64 start, spent;
	int i;

	start = ktime_get_ns();
	for (i = 0; i < BURST; i++)
		iowrite32(i, bench->regs + REG_PLAIN);
	spent = ktime_get_ns() - start;
	/* A read returns when all writes are done: the next burst meets an empty queue. */
	ioread32(bench->regs + REG_PLAIN);
	return spent / BURST;
}

static s64 config_read(struct bench *bench)
{
	u64 start = ktime_get_ns();
	u32 value;

	pci_read_config_dword(bench->pdev, PCI_VENDOR_ID, &value);
	return ktime_get_ns() - start;
}

static s64 interrupt_latency(struct bench *bench)
{
	u64 start, rang;

	WRITE_ONCE(bench->rang, 0);
	start = ktime_get_ns();
	iowrite32(1, bench->regs + REG_DOORBELL);
	rang = bench_wait(bench, start);
	return rang ? (s64)(rang - start) : -ETIMEDOUT;
}

static s64 dma(struct bench *bench, u32 command)
{
	u64 start, rang;

	WRITE_ONCE(bench->rang, 0);
	start = ktime_get_ns();
	iowrite32(lower_32_bits(bench->bus), bench->regs + REG_DMA_ADDR);
	iowrite32(upper_32_bits(bench->bus), bench->regs + REG_DMA_ADDR + 4);
	iowrite32(DMA_SIZE, bench->regs + REG_DMA_LENGTH);
	iowrite32(command, bench->regs + REG_DMA_COMMAND);
	rang = bench_wait(bench, start);
	return rang ? (s64)(rang - start) : -ETIMEDOUT;
}

static s64 dma_to_card(struct bench *bench)
{
	return dma(bench, DMA_TO_CARD);
}

static s64 dma_to_host(struct bench *bench)
{
	return dma(bench, DMA_TO_HOST);
}

#define MEASUREMENT(name)						\
static int name##_show(struct seq_file *file, void *unused)		\
{									\
	int i;								\
									\
	for (i = 0; i < samples; i++) {					\
		s64 ns = name(file->private);				\
									\
		if (ns < 0)						\
			return ns;					\
		seq_printf(file, "%lld\n", ns);				\
		cond_resched();						\
	}								\
	return 0;							\
}									\
									\
static int name##_open(struct inode *inode, struct file *file)		\
{									\
	/* A buffer that is too small would have it all measured anew. */ \
	return single_open_size(file, name##_show, inode->i_private,	\
				(samples + 1) * LINE);			\
}									\
									\
static const struct file_operations name##_fops = {			\
	.owner = THIS_MODULE,						\
	.open = name##_open,						\
	.read = seq_read,						\
	.release = single_release,					\
}

MEASUREMENT(mmio_read);
MEASUREMENT(mmio_read_hooked);
MEASUREMENT(mmio_read_after_idle);
MEASUREMENT(mmio_write_sustained);
MEASUREMENT(mmio_write_burst);
MEASUREMENT(config_read);
MEASUREMENT(interrupt_latency);
MEASUREMENT(dma_to_card);
MEASUREMENT(dma_to_host);

static void bench_add_files(struct bench *bench)
{
	struct dentry *folder = debugfs_create_dir("softcard_bench", NULL);

#define ADD(name) debugfs_create_file(#name, 0400, folder, bench, &name##_fops)
	ADD(mmio_read);
	ADD(mmio_read_hooked);
	ADD(mmio_read_after_idle);
	ADD(mmio_write_sustained);
	ADD(mmio_write_burst);
	ADD(config_read);
	ADD(interrupt_latency);
	ADD(dma_to_card);
	ADD(dma_to_host);
#undef ADD
	bench->folder = folder;
}

static int bench_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct bench *bench;
	int err;

	bench = devm_kzalloc(&pdev->dev, sizeof(*bench), GFP_KERNEL);
	if (!bench)
		return -ENOMEM;
	bench->pdev = pdev;
	pci_set_drvdata(pdev, bench);
	err = pcim_enable_device(pdev);
	if (err)
		return err;
	bench->regs = pcim_iomap_region(pdev, 0, "softcard_bench");
	if (IS_ERR(bench->regs))
		return PTR_ERR(bench->regs);
	pci_set_master(pdev);
	err = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
	if (err)
		return err;
	bench->buffer = dmam_alloc_coherent(&pdev->dev, DMA_SIZE, &bench->bus, GFP_KERNEL);
	if (!bench->buffer)
		return -ENOMEM;
	err = pci_alloc_irq_vectors(pdev, 1, 1, PCI_IRQ_MSIX | PCI_IRQ_MSI);
	if (err < 0)
		return err;
	err = request_irq(pci_irq_vector(pdev, 0), bench_interrupt, 0, "softcard_bench", bench);
	if (err) {
		pci_free_irq_vectors(pdev);
		return err;
	}
	bench_add_files(bench);
	return 0;
}

static void bench_remove(struct pci_dev *pdev)
{
	struct bench *bench = pci_get_drvdata(pdev);

	debugfs_remove_recursive(bench->folder);
	free_irq(pci_irq_vector(pdev, 0), bench);
	pci_free_irq_vectors(pdev);
}

static const struct pci_device_id bench_ids[] = {
	{ PCI_DEVICE(0x1ded, 0x0bec) },
	{ }
};
MODULE_DEVICE_TABLE(pci, bench_ids);

static struct pci_driver bench_driver = {
	.name = "softcard_bench",
	.id_table = bench_ids,
	.probe = bench_probe,
	.remove = bench_remove,
};
module_pci_driver(bench_driver);

MODULE_DESCRIPTION("Times accesses to softcard's benchmark card");
MODULE_LICENSE("GPL");
