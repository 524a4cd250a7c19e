// SPDX-License-Identifier: GPL-2.0-only
/*
 * Drives whatever card there is, and trusts it in everything: takes all the vectors and BARs that
 * its configuration space tells of, and keeps accessing registers and mapping memory for it until
 * it goes. The card gets to know the addresses by the first register of each BAR.
 */
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/random.h>
#include <linux/slab.h>

#define VECTORS		32
#define BUFFERS		8
#define BUFFER_SIZE	(4 * PAGE_SIZE)
#define BAR_LENGTH	(16 * PAGE_SIZE)
/* A level that nobody releases would be all that the processor does. */
#define INTERRUPTS	1000

struct any_buffer {
	void *memory;
	dma_addr_t address;
	size_t size;
	enum dma_data_direction direction;
};

struct any {
	struct pci_dev *pdev;
	void __iomem *bar[PCI_STD_NUM_BARS];
	int vectors;
	atomic_t interrupts;
	struct task_struct *thread;
	struct any_buffer coherent[BUFFERS];
	struct any_buffer streaming[BUFFERS];
};

static irqreturn_t any_interrupt(int irq, void *data)
{
	struct any *any = data;

	if (atomic_inc_return(&any->interrupts) % INTERRUPTS == 0)
		disable_irq_nosync(irq);
	else if (any->bar[0] && atomic_read(&any->interrupts) % 8 == 0)
		ioread32(any->bar[0]);
	return IRQ_HANDLED;
}

static void any_tell(struct any *any, dma_addr_t address)
{
	int bar;

	for (bar = 0; bar < PCI_STD_NUM_BARS; bar++)
		if (any->bar[bar])
			iowrite32(lower_32_bits(address), any->bar[bar]);
}

static void any_free(struct any *any, struct any_buffer *buffer, bool coherent)
{
	struct device *dev = &any->pdev->dev;

	if (!buffer->memory)
		return;
	if (coherent) {
		dma_free_coherent(dev, buffer->size, buffer->memory, buffer->address);
	} else {
		dma_unmap_single(dev, buffer->address, buffer->size, buffer->direction);
		kfree(buffer->memory);
	}
	buffer->memory = NULL;
}

/* What was there is freed, and other memory is there. */
static void any_exchange(struct any *any, struct any_buffer *buffer, bool coherent)
{
	struct device *dev = &any->pdev->dev;

	any_free(any, buffer, coherent);
	buffer->size = 1 + get_random_u32() % BUFFER_SIZE;
	if (coherent) {
		buffer->memory = dma_alloc_coherent(dev, buffer->size, &buffer->address,
						    GFP_KERNEL | __GFP_NOWARN);
	} else {
		buffer->memory = kmalloc(buffer->size, GFP_KERNEL);
		if (!buffer->memory)
			return;
		buffer->direction = get_random_u32() % 3;
		buffer->address = dma_map_single(dev, buffer->memory, buffer->size,
						 buffer->direction);
		if (dma_mapping_error(dev, buffer->address)) {
			kfree(buffer->memory);
			buffer->memory = NULL;
		}
	}
	if (buffer->memory)
		any_tell(any, buffer->address);
}

static void any_access(struct any *any)
{
	void __iomem *bar = any->bar[get_random_u32() % PCI_STD_NUM_BARS];
	unsigned int offset = get_random_u32() % (BAR_LENGTH / 8) * 8;
	u32 value;

	pci_read_config_dword(any->pdev, get_random_u32() % 1024 * 4, &value);
	if (!bar)
		return;
	/* Within 16 bytes, which the smallest has. */
	iowrite32(value, bar + offset % 16);
	ioread8(bar + offset % 16);
}

static int any_run(void *data)
{
	struct any *any = data;

	while (!kthread_should_stop()) {
		unsigned int which = get_random_u32() % BUFFERS;
		bool coherent = get_random_u32() % 2;

		any_exchange(any, coherent ? &any->coherent[which] : &any->streaming[which],
			     coherent);
		any_access(any);
		usleep_range(500, 1000);
	}
	return 0;
}

static void any_request_irqs(struct any *any)
{
	int i, err = 0;

	any->vectors = pci_alloc_irq_vectors(any->pdev, 1, VECTORS, PCI_IRQ_ALL_TYPES);
	for (i = 0; !err && i < any->vectors; i++)
		err = request_irq(pci_irq_vector(any->pdev, i), any_interrupt, IRQF_SHARED,
				  KBUILD_MODNAME, any);
	if (err)
		any->vectors = i - 1;
}

static int any_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct any *any;
	int bar, err;

	any = devm_kzalloc(&pdev->dev, sizeof(*any), GFP_KERNEL);
	if (!any)
		return -ENOMEM;
	any->pdev = pdev;
	pci_set_drvdata(pdev, any);
	err = pcim_enable_device(pdev);
	if (err)
		return err;
	err = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(32));
	if (err)
		return err;
	for (bar = 0; bar < PCI_STD_NUM_BARS; bar++)
		if (pci_resource_flags(pdev, bar) & IORESOURCE_MEM)
			any->bar[bar] = pcim_iomap(pdev, bar, BAR_LENGTH);
	pci_set_master(pdev);
	any->thread = kthread_create(any_run, any, KBUILD_MODNAME);
	if (IS_ERR(any->thread))
		return PTR_ERR(any->thread);
	any_request_irqs(any);
	wake_up_process(any->thread);
	return 0;
}

static void any_remove(struct pci_dev *pdev)
{
	struct any *any = pci_get_drvdata(pdev);
	int i;

	kthread_stop(any->thread);
	for (i = 0; i < any->vectors; i++)
		free_irq(pci_irq_vector(pdev, i), any);
	pci_free_irq_vectors(pdev);
	for (i = 0; i < BUFFERS; i++) {
		any_free(any, &any->coherent[i], true);
		any_free(any, &any->streaming[i], false);
	}
}

static const struct pci_device_id any_ids[] = {
	{ PCI_DEVICE(0x1ded, 0xf022) },
	{ }
};

static struct pci_driver any_driver = {
	.name = KBUILD_MODNAME,
	.id_table = any_ids,
	.probe = any_probe,
	.remove = any_remove,
};
module_pci_driver(any_driver);
MODULE_DESCRIPTION("Drives any softcard, and trusts it");
MODULE_LICENSE("GPL");
