// SPDX-License-Identifier: GPL-2.0-only
/*
 * A driver for QEMU's edu device that tries each of its parts when it is loaded, and says in the
 * kernel's log what came of it: identification, liveness, factorial with an interrupt, and DMA to
 * the device and back.
 */

#include <linux/completion.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/string.h>

#define IDENTIFICATION		0x00
#define LIVENESS		0x04
#define FACTORIAL		0x08
#define STATUS			0x20
#define STATUS_INTERRUPT	0x80
#define INTERRUPT_STATUS	0x24
#define INTERRUPT_ACKNOWLEDGE	0x64
#define DMA_SOURCE		0x80
#define DMA_DESTINATION		0x88
#define DMA_COUNT		0x90
#define DMA_COMMAND		0x98
#define DMA_START		0x01
#define DMA_TO_MEMORY		0x02
#define DMA_INTERRUPT		0x04
#define BUFFER			0x40000

#define TIMEOUT			HZ
#define TEXT			"these words went to the card and came back"

static int factorial_of = 10;
module_param(factorial_of, int, 0444);
MODULE_PARM_DESC(factorial_of, "number whose factorial the card computes");

struct edu {
	struct pci_dev *pdev;
	void __iomem *registers;
	struct completion interrupted;
	u32 why;
};

static irqreturn_t edu_interrupt(int irq, void *data)
{
	struct edu *edu = data;
	u32 why = readl(edu->registers + INTERRUPT_STATUS);

	if (!why)
		return IRQ_NONE;
	writel(why, edu->registers + INTERRUPT_ACKNOWLEDGE);
	edu->why = why;
	complete(&edu->interrupted);
	return IRQ_HANDLED;
}

static int edu_wait(struct edu *edu, const char *what)
{
	if (wait_for_completion_timeout(&edu->interrupted, TIMEOUT))
		return 0;
	dev_err(&edu->pdev->dev, "no interrupt after %s\n", what);
	return -ETIMEDOUT;
}

static int edu_try_factorial(struct edu *edu)
{
	int ret;

	writel(STATUS_INTERRUPT, edu->registers + STATUS);
	writel(factorial_of, edu->registers + FACTORIAL);
	ret = edu_wait(edu, "a factorial");
	if (ret)
		return ret;
	dev_info(&edu->pdev->dev, "factorial of %d: %u (interrupt %#x)\n", factorial_of,
		 readl(edu->registers + FACTORIAL), edu->why);
	return 0;
}

static int edu_copy(struct edu *edu, u64 source, u64 destination, u64 count, u32 direction)
{
	writeq(source, edu->registers + DMA_SOURCE);
	writeq(destination, edu->registers + DMA_DESTINATION);
	writeq(count, edu->registers + DMA_COUNT);
	writeq(DMA_START | DMA_INTERRUPT | direction, edu->registers + DMA_COMMAND);
	return edu_wait(edu, "a DMA");
}

static int edu_try_dma(struct edu *edu)
{
	struct device *dev = &edu->pdev->dev;
	size_t half = PAGE_SIZE / 2;
	dma_addr_t address;
	char *memory;
	int ret;

	memory = dmam_alloc_coherent(dev, PAGE_SIZE, &address, GFP_KERNEL);
	if (!memory)
		return -ENOMEM;
	strscpy(memory, TEXT, half);
	ret = edu_copy(edu, address, BUFFER, sizeof(TEXT), 0);
	if (ret)
		return ret;
	ret = edu_copy(edu, BUFFER, address + half, sizeof(TEXT), DMA_TO_MEMORY);
	if (ret)
		return ret;
	if (memcmp(memory, memory + half, sizeof(TEXT))) {
		dev_err(dev, "DMA brought something else back\n");
		return -EIO;
	}
	dev_info(dev, "DMA: %s (interrupt %#x)\n", memory + half, edu->why);
	return 0;
}

static int edu_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct device *dev = &pdev->dev;
	struct edu *edu;
	int ret;

	edu = devm_kzalloc(dev, sizeof(*edu), GFP_KERNEL);
	if (!edu)
		return -ENOMEM;
	edu->pdev = pdev;
	init_completion(&edu->interrupted);

	ret = pcim_enable_device(pdev);
	if (ret)
		return ret;
	edu->registers = pcim_iomap(pdev, 0, 0);
	if (!edu->registers)
		return -ENOMEM;
	ret = dma_set_mask_and_coherent(dev, DMA_BIT_MASK(28));
	if (ret)
		return dev_err_probe(dev, ret, "the card reaches only 256 MiB: use less memory\n");
	pci_set_master(pdev);
	ret = pci_alloc_irq_vectors(pdev, 1, 1, PCI_IRQ_ALL_TYPES);
	if (ret < 0)
		return ret;
	ret = request_irq(pci_irq_vector(pdev, 0), edu_interrupt, IRQF_SHARED, KBUILD_MODNAME, edu);
	if (ret)
		goto free_vectors;
	pci_set_drvdata(pdev, edu);

	dev_info(dev, "identification %#010x, %s\n", readl(edu->registers + IDENTIFICATION),
		 pci_dev_msi_enabled(pdev) ? "MSI" : "INTx");
	writel(0x12345678, edu->registers + LIVENESS);
	dev_info(dev, "liveness: wrote 0x12345678, read %#010x\n",
		 readl(edu->registers + LIVENESS));
	ret = edu_try_factorial(edu);
	if (!ret)
		ret = edu_try_dma(edu);
	if (ret)
		goto free_irq;
	return 0;

free_irq:
	free_irq(pci_irq_vector(pdev, 0), edu);
free_vectors:
	pci_free_irq_vectors(pdev);
	return ret;
}

static void edu_remove(struct pci_dev *pdev)
{
	free_irq(pci_irq_vector(pdev, 0), pci_get_drvdata(pdev));
	pci_free_irq_vectors(pdev);
}

static const struct pci_device_id edu_ids[] = {
	{ PCI_DEVICE(0x1234, 0x11e8) },
	{ }
};
MODULE_DEVICE_TABLE(pci, edu_ids);

static struct pci_driver edu_driver = {
	.name = KBUILD_MODNAME,
	.id_table = edu_ids,
	.probe = edu_probe,
	.remove = edu_remove,
};
module_pci_driver(edu_driver);

MODULE_DESCRIPTION("Example driver of QEMU's edu device");
MODULE_LICENSE("GPL");
