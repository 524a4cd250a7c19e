// SPDX-License-Identifier: GPL-2.0-only
/*
 * Interrupts as Linux has them. Messages do not exist: a vector is a Linux interrupt.
 *
 * A message is counted, and the handler called as often, in hard interrupt context: none is lost,
 * and none is merged with another. A handler that reads no registers is called on the processor
 * that the vector's affinity names, another one where the scheduler puts its worker.
 */
#include <linux/irq.h>
#include <linux/irqdomain.h>
#include <linux/module.h>
#include <linux/msi.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/timekeeping.h>
#include <linux/version.h>

#include "softcard.h"

/* Linux split MSI domains into parents and a child for each device; legacy ones are gone. */
#define SOFTCARD_MSI_PARENT	(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0))

#if SOFTCARD_MSI_PARENT
#include <linux/irqchip/irq-msi-lib.h>
#endif

#define FUNCTION_SHIFT		12
#define IS_MSIX			BIT(11)
#define INDEX_MASK		(IS_MSIX - 1)
/* How long a handler may be called over and over. */
#define AT_ONCE_NS		NSEC_PER_MSEC
/* In place of a function's number. */
#define PORT			SOFTCARD_FUNCTIONS
/* Where messages would go, for whoever reads the table. */
#define MESSAGE_ADDRESS		0xfee00000
/* How often a handler is called without a read before its vector is taken for quiet. */
#define QUIET_AFTER		16

static struct workqueue_struct *softcard_irq_wq;
/* Whose handler is being called. */
static DEFINE_PER_CPU(struct softcard_vector *, softcard_handling);

/* A card may interrupt faster than its handler is; then others have their turn in between. */
static void softcard_vector_handle(struct irq_work *work)
{
	struct softcard_vector *vector = container_of(work, struct softcard_vector, work);
	u64 end = ktime_get_mono_fast_ns() + AT_ONCE_NS;

	this_cpu_write(softcard_handling, vector);
	do {
		unsigned int virq = READ_ONCE(vector->virq);

		if (vector->quiet < QUIET_AFTER)
			vector->quiet++;
		if (virq)
			generic_handle_irq(virq);
		else
			atomic_long_set(&vector->count, 1);
		if (atomic_long_dec_and_test(&vector->count))
			goto out;
	} while (!vector->level && ktime_get_mono_fast_ns() < end);
	queue_work(softcard_irq_wq, &vector->worker);
out:
	this_cpu_write(softcard_handling, NULL);
}

static void softcard_vector_remote(void *data)
{
	struct softcard_vector *vector = data;

	softcard_vector_handle(&vector->work);
}

/* In hard interrupt context all the same, but on top of a thread that nobody waits for. */
static void softcard_vector_work(struct work_struct *work)
{
	struct softcard_vector *vector = container_of(work, struct softcard_vector, worker);

	irq_work_queue(&vector->work);
}

/**
 * softcard_vector_reads - a read is made that cannot sleep
 *
 * A handler that reads registers waits for the card's program, and keeps its processor meanwhile.
 * It must not have interrupted that program, nor may the scheduler take the processor for idle.
 */
void softcard_vector_reads(void)
{
	struct softcard_vector *vector = this_cpu_read(softcard_handling);

	if (vector)
		vector->quiet = 0;
}

static void softcard_vector_init(struct softcard_vector *vector, struct softcard_function *function)
{
	vector->function = function;
	vector->work = IRQ_WORK_INIT_HARD(softcard_vector_handle);
	INIT_WORK(&vector->worker, softcard_vector_work);
	INIT_CSD(&vector->remote, softcard_vector_remote, vector);
	vector->cpu = cpumask_first(cpu_online_mask);
}

/* A message; the caller holds the lock of whoever sends it. */
void softcard_vector_signal(struct softcard_vector *vector)
{
	unsigned int cpu = READ_ONCE(vector->cpu);

	/* On two processors at once, messages would be merged: who handles goes on. */
	if (atomic_long_inc_return(&vector->count) != 1)
		return;
	if (READ_ONCE(vector->quiet) < QUIET_AFTER) {
		queue_work(softcard_irq_wq, &vector->worker);
		return;
	}
	if (cpu < nr_cpu_ids && cpu != smp_processor_id()) {
		if (!smp_call_function_single_async(cpu, &vector->remote))
			return;
	}
	irq_work_queue(&vector->work);
}

/*
 * An inter-processor interrupt that was sent has been taken when all have answered: the second
 * time, since a processor answers those who wait before it sees to the others.
 */
static void softcard_irq_wait(void)
{
	synchronize_rcu();
	kick_all_cpus_sync();
	kick_all_cpus_sync();
}

static void softcard_vector_stop(struct softcard_vector *vector)
{
	WRITE_ONCE(vector->virq, 0);
	/* What is on its way finds no number any more, and comes to nothing by itself. */
	softcard_irq_wait();
	flush_work(&vector->worker);
	irq_work_sync(&vector->work);
}

static int softcard_irq_set_affinity(struct irq_data *data, const struct cpumask *mask, bool force)
{
	struct softcard_vector *vector = irq_data_get_irq_chip_data(data);
	unsigned int cpu = cpumask_any_and(mask, cpu_online_mask);

	if (force)
		cpu = cpumask_first(mask);
	if (cpu >= nr_cpu_ids)
		return -EINVAL;
	WRITE_ONCE(vector->cpu, cpu);
	irq_data_update_effective_affinity(data, cpumask_of(cpu));
	return IRQ_SET_MASK_OK_DONE;
}

static void softcard_irq_nothing(struct irq_data *data)
{
}

/* MSI and MSI-X. */

/* NULL where a card's configuration space tells of more vectors than the kernel was told of. */
static struct softcard_vector *softcard_vector_of(struct softcard *card, irq_hw_number_t hwirq)
{
	unsigned int number = hwirq >> FUNCTION_SHIFT, index = hwirq & INDEX_MASK;
	struct softcard_function *function;

	if (number == PORT)
		return &card->port.vector;
	function = card->function[number];
	if (hwirq & IS_MSIX)
		return index < function->info.msix_vectors ? &function->msix[index] : NULL;
	return index < function->info.msi_vectors ? &function->msi[index] : NULL;
}

static irq_hw_number_t softcard_hwirq(struct msi_desc *desc)
{
	struct pci_dev *pdev = msi_desc_to_pci_dev(desc);
	unsigned int number = pci_is_root_bus(pdev->bus) ? PORT : PCI_FUNC(pdev->devfn);

	return (irq_hw_number_t)number << FUNCTION_SHIFT |
	       (desc->pci.msi_attrib.is_msix ? IS_MSIX : 0) | desc->msi_index;
}

static void softcard_compose(struct irq_data *data, struct msi_msg *msg)
{
	msg->address_hi = 0;
	msg->address_lo = MESSAGE_ADDRESS;
	msg->data = data->hwirq & INDEX_MASK;
}

#if SOFTCARD_MSI_PARENT

static struct irq_chip softcard_msi_chip = {
	.name = "softcard",
	.irq_ack = softcard_irq_nothing,
	.irq_mask = softcard_irq_nothing,
	.irq_unmask = softcard_irq_nothing,
	.irq_compose_msi_msg = softcard_compose,
	.irq_set_affinity = softcard_irq_set_affinity,
};

static void softcard_msi_free(struct irq_domain *domain, unsigned int virq, unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count; i++) {
		struct irq_data *data = irq_domain_get_irq_data(domain, virq + i);

		softcard_vector_stop(irq_data_get_irq_chip_data(data));
		irq_domain_reset_irq_data(data);
	}
}

static int softcard_msi_alloc(struct irq_domain *domain, unsigned int virq, unsigned int count,
			      void *arg)
{
	msi_alloc_info_t *info = arg;
	irq_hw_number_t hwirq = softcard_hwirq(info->desc);
	unsigned int i;

	if (!softcard_vector_of(domain->host_data, hwirq + count - 1))
		return -ENOSPC;
	for (i = 0; i < count; i++) {
		struct softcard_vector *vector = softcard_vector_of(domain->host_data, hwirq + i);

		irq_domain_set_info(domain, virq + i, hwirq + i, &softcard_msi_chip, vector,
				    handle_edge_irq, NULL, "edge");
		WRITE_ONCE(vector->virq, virq + i);
	}
	return 0;
}

static const struct irq_domain_ops softcard_msi_domain_ops = {
	.alloc = softcard_msi_alloc,
	.free = softcard_msi_free,
};

static const struct msi_parent_ops softcard_msi_parent_ops = {
	.supported_flags = MSI_GENERIC_FLAGS_MASK | MSI_FLAG_MULTI_PCI_MSI | MSI_FLAG_PCI_MSIX,
	.required_flags = MSI_FLAG_USE_DEF_DOM_OPS | MSI_FLAG_USE_DEF_CHIP_OPS,
	.chip_flags = MSI_CHIP_FLAG_SET_ACK,
	.bus_select_mask = MATCH_PCI_MSI,
	.bus_select_token = DOMAIN_BUS_PCI_MSI,
	.prefix = "softcard-",
	.init_dev_msi_info = msi_lib_init_dev_msi_info,
};

static struct irq_domain *softcard_create_msi_domain(struct softcard *card)
{
	struct irq_domain_info info = {
		.fwnode = card->msi_fwnode,
		.ops = &softcard_msi_domain_ops,
		.size = (PORT + 1) << FUNCTION_SHIFT,
		.host_data = card,
	};

	return msi_create_parent_irq_domain(&info, &softcard_msi_parent_ops);
}

#else

static irq_hw_number_t softcard_msi_get_hwirq(struct msi_domain_info *info, msi_alloc_info_t *arg)
{
	return softcard_hwirq(arg->desc);
}

static void softcard_msi_set_desc(msi_alloc_info_t *arg, struct msi_desc *desc)
{
	arg->desc = desc;
}

static int softcard_msi_init(struct irq_domain *domain, struct msi_domain_info *info,
			     unsigned int virq, irq_hw_number_t hwirq, msi_alloc_info_t *arg)
{
	struct softcard_vector *vector = softcard_vector_of(info->data, hwirq);

	if (!vector)
		return -ENOSPC;
	irq_domain_set_info(domain, virq, hwirq, info->chip, vector, handle_edge_irq, NULL, "edge");
	WRITE_ONCE(vector->virq, virq);
	return 0;
}

static void softcard_msi_free(struct irq_domain *domain, struct msi_domain_info *info,
			      unsigned int virq)
{
	struct irq_data *data = irq_domain_get_irq_data(domain, virq);

	softcard_vector_stop(irq_data_get_irq_chip_data(data));
}

static struct irq_chip softcard_msi_chip = {
	.name = "softcard-MSI",
	.irq_ack = softcard_irq_nothing,
	.irq_mask = pci_msi_mask_irq,
	.irq_unmask = pci_msi_unmask_irq,
	.irq_compose_msi_msg = softcard_compose,
	.irq_set_affinity = softcard_irq_set_affinity,
};

static struct msi_domain_ops softcard_msi_domain_ops = {
	.get_hwirq = softcard_msi_get_hwirq,
	.set_desc = softcard_msi_set_desc,
	.msi_init = softcard_msi_init,
	.msi_free = softcard_msi_free,
};

static struct irq_domain *softcard_create_msi_domain(struct softcard *card)
{
	card->msi_info = (struct msi_domain_info) {
		.flags = MSI_FLAG_USE_DEF_DOM_OPS | MSI_FLAG_USE_DEF_CHIP_OPS |
			 MSI_FLAG_MULTI_PCI_MSI | MSI_FLAG_PCI_MSIX,
		.ops = &softcard_msi_domain_ops,
		.chip = &softcard_msi_chip,
		.data = card,
	};
	return pci_msi_create_irq_domain(card->msi_fwnode, &card->msi_info, NULL);
}

#endif

/* INTx: a level. */

/* The caller holds @irq_lock. */
void softcard_intx_update(struct softcard_function *function)
{
	if (function->intx_asserted && !function->intx_masked && function->intx.virq)
		softcard_vector_signal(&function->intx);
}

static void softcard_intx_mask(struct irq_data *data)
{
	struct softcard_vector *vector = irq_data_get_irq_chip_data(data);
	unsigned long flags;

	raw_spin_lock_irqsave(&vector->function->irq_lock, flags);
	vector->function->intx_masked = true;
	raw_spin_unlock_irqrestore(&vector->function->irq_lock, flags);
}

static void softcard_intx_unmask(struct irq_data *data)
{
	struct softcard_vector *vector = irq_data_get_irq_chip_data(data);
	unsigned long flags;

	raw_spin_lock_irqsave(&vector->function->irq_lock, flags);
	vector->function->intx_masked = false;
	softcard_intx_update(vector->function);
	raw_spin_unlock_irqrestore(&vector->function->irq_lock, flags);
}

static struct irq_chip softcard_intx_chip = {
	.name = "softcard-INTx",
	.irq_mask = softcard_intx_mask,
	.irq_unmask = softcard_intx_unmask,
	.irq_set_affinity = softcard_irq_set_affinity,
};

static int softcard_intx_map(struct irq_domain *domain, unsigned int virq, irq_hw_number_t hwirq)
{
	struct softcard *card = domain->host_data;
	struct softcard_vector *vector = &card->function[hwirq]->intx;

	irq_set_chip_data(virq, vector);
	irq_set_chip_and_handler(virq, &softcard_intx_chip, handle_level_irq);
	WRITE_ONCE(vector->virq, virq);
	return 0;
}

static void softcard_intx_unmap(struct irq_domain *domain, unsigned int virq)
{
	struct softcard_vector *vector = irq_get_chip_data(virq);

	irq_set_chip_and_handler(virq, NULL, NULL);
	softcard_vector_stop(vector);
	irq_set_chip_data(virq, NULL);
}

static const struct irq_domain_ops softcard_intx_domain_ops = {
	.map = softcard_intx_map,
	.unmap = softcard_intx_unmap,
};

int softcard_intx_virq(struct softcard_function *function)
{
	return irq_create_mapping(function->card->intx_domain, function->number);
}

int softcard_irq_set_function(struct softcard_function *function)
{
	unsigned int vectors = function->info.msix_vectors;
	unsigned int i;

	softcard_vector_init(&function->intx, function);
	function->intx.level = true;
	if (vectors) {
		function->table = kvcalloc(vectors, PCI_MSIX_ENTRY_SIZE, GFP_KERNEL_ACCOUNT);
		function->pending = bitmap_zalloc(vectors, GFP_KERNEL_ACCOUNT);
		function->msix = kvcalloc(vectors, sizeof(*function->msix), GFP_KERNEL_ACCOUNT);
		if (!function->table || !function->pending || !function->msix)
			goto free;
		for (i = 0; i < vectors; i++)
			softcard_vector_init(&function->msix[i], function);
	}
	if (function->info.msi_vectors) {
		function->msi = kcalloc(SOFTCARD_MSI_VECTORS, sizeof(*function->msi),
					GFP_KERNEL_ACCOUNT);
		if (!function->msi)
			goto free;
		for (i = 0; i < SOFTCARD_MSI_VECTORS; i++)
			softcard_vector_init(&function->msi[i], function);
	}
	softcard_irq_reset(function);
	return 0;

free:
	softcard_irq_free_function(function);
	return -ENOMEM;
}

void softcard_irq_free_function(struct softcard_function *function)
{
	kvfree(function->table);
	bitmap_free(function->pending);
	kvfree(function->msix);
	kfree(function->msi);
	function->table = NULL;
	function->pending = NULL;
	function->msix = NULL;
	function->msi = NULL;
}

int softcard_irq_prepare(struct softcard *card)
{
	softcard_vector_init(&card->port.vector, NULL);
	card->msi_fwnode = irq_domain_alloc_named_id_fwnode("softcard-MSI", card->domain);
	card->intx_fwnode = irq_domain_alloc_named_id_fwnode("softcard-INTx", card->domain);
	if (!card->msi_fwnode || !card->intx_fwnode)
		goto release;
	card->msi_domain = softcard_create_msi_domain(card);
	if (!card->msi_domain)
		goto release;
	card->intx_domain = irq_domain_create_linear(card->intx_fwnode, SOFTCARD_FUNCTIONS,
						     &softcard_intx_domain_ops, card);
	if (!card->intx_domain)
		goto release;
	return 0;

release:
	softcard_irq_release(card);
	return -ENOMEM;
}

void softcard_irq_release(struct softcard *card)
{
	unsigned int i;

	if (card->intx_domain) {
		for (i = 0; i < card->function_count; i++)
			irq_dispose_mapping(irq_find_mapping(card->intx_domain, i));
		irq_domain_remove(card->intx_domain);
	}
	if (card->msi_domain)
		irq_domain_remove(card->msi_domain);
	if (card->intx_fwnode)
		irq_domain_free_fwnode(card->intx_fwnode);
	if (card->msi_fwnode)
		irq_domain_free_fwnode(card->msi_fwnode);
	card->intx_domain = NULL;
	card->msi_domain = NULL;
	card->intx_fwnode = NULL;
	card->msi_fwnode = NULL;
}

/* Nobody signals any more, and no handler is left: what is on its way comes to nothing. */
void softcard_irq_settle(struct softcard *card)
{
	unsigned int i, j;

	flush_workqueue(softcard_irq_wq);
	softcard_irq_wait();
	irq_work_sync(&card->port.vector.work);
	for (i = 0; i < card->function_count; i++) {
		struct softcard_function *function = card->function[i];

		if (!function->present)
			continue;
		irq_work_sync(&function->intx.work);
		for (j = 0; j < function->info.msix_vectors; j++)
			irq_work_sync(&function->msix[j].work);
		for (j = 0; function->msi && j < SOFTCARD_MSI_VECTORS; j++)
			irq_work_sync(&function->msi[j].work);
	}
}

int softcard_irq_init(void)
{
	softcard_irq_wq = alloc_workqueue("softcard-irq", WQ_UNBOUND | WQ_HIGHPRI, 0);
	return softcard_irq_wq ? 0 : -ENOMEM;
}

void softcard_irq_exit(void)
{
	destroy_workqueue(softcard_irq_wq);
}
