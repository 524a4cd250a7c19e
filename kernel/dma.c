// SPDX-License-Identifier: GPL-2.0-only
/*
 * DMA that is confined to what drivers have mapped, as by a strict IOMMU: each function has bus
 * addresses of its own, with bounds to the byte and a guard page behind each mapping, and addresses
 * are used again as late as possible.
 */
#include <linux/dma-map-ops.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/version.h>
#include <linux/vmalloc.h>

#include "softcard.h"

/* Address 0 is what drivers take for "none"; a card that sends interrupts there is mistaken. */
#define FIRST_PAGE	16
#define MESSAGES	(0xfee00000 >> PAGE_SHIFT)
#define MESSAGES_PAGES	(0x100000 >> PAGE_SHIFT)
/* A longer list is mapped in pieces, each of which needs no more than a page of memory. */
#define RUN_PAGES \
	((PAGE_SIZE - sizeof(struct softcard_mapping)) / sizeof(void *))

static struct softcard_function *softcard_function_of(struct device *dev)
{
	return softcard_function_of_pci(to_pci_dev(dev));
}

static unsigned long softcard_pages(u64 address, size_t size)
{
	return PFN_UP(offset_in_page(address) + size);
}

/**
 * softcard_dma_find - what a bus address belongs to
 * @space: the function's
 * @address: bus address
 *
 * The caller holds @lock of @space, and finds the mapping that the page of @address belongs to:
 * whether it is the byte's as well, the caller has to see.
 *
 * Return: the mapping, or NULL.
 */
struct softcard_mapping *softcard_dma_find(struct softcard_dma_space *space, u64 address)
{
	unsigned long page = address >> PAGE_SHIFT;
	struct softcard_mapping **leaf;

	if (page >= SOFTCARD_IOVA_PAGES)
		return NULL;
	leaf = space->leaf[page / SOFTCARD_LEAF_PAGES];
	return leaf ? leaf[page % SOFTCARD_LEAF_PAGES] : NULL;
}

static void softcard_enter(struct softcard_dma_space *space, unsigned long page,
			   unsigned long count, struct softcard_mapping *mapping)
{
	for (; count; count--, page++)
		space->leaf[page / SOFTCARD_LEAF_PAGES][page % SOFTCARD_LEAF_PAGES] = mapping;
}

/* Leaves stay until the function goes. */
static bool softcard_leaves(struct softcard_dma_space *space, unsigned long page,
			    unsigned long count)
{
	unsigned long leaf;

	for (leaf = page / SOFTCARD_LEAF_PAGES; leaf <= (page + count - 1) / SOFTCARD_LEAF_PAGES;
	     leaf++) {
		if (space->leaf[leaf])
			continue;
		space->leaf[leaf] = (void *)get_zeroed_page(GFP_ATOMIC | __GFP_NOWARN);
		if (!space->leaf[leaf])
			return false;
	}
	return true;
}

/*
 * Finds @count pages and a guard page behind them; the caller holds @lock. Leaves are there then.
 */
static bool softcard_reserve(struct softcard_dma_space *space, unsigned long count, u64 mask,
			     unsigned long *page)
{
	unsigned long limit = min_t(u64, SOFTCARD_IOVA_PAGES, (mask >> PAGE_SHIFT) + 1);

	if (space->closed || count >= limit)
		return false;
	*page = bitmap_find_next_zero_area(space->used, limit, space->next, count + 1, 0);
	if (*page >= limit)
		*page = bitmap_find_next_zero_area(space->used, limit, 0, count + 1, 0);
	if (*page >= limit || !softcard_leaves(space, *page, count))
		return false;
	bitmap_set(space->used, *page, count + 1);
	space->next = *page + count + 1;
	return true;
}

/* With room for @pages of a list. */
static struct softcard_mapping *softcard_new_mapping(size_t size, unsigned long pages,
						     enum dma_data_direction direction)
{
	struct softcard_mapping *mapping;

	mapping = kmalloc(struct_size(mapping, page, pages),
			  softcard_may_sleep() ? GFP_NOIO : GFP_ATOMIC);
	if (mapping) {
		mapping->size = size;
		mapping->direction = direction;
		mapping->memory = NULL;
		mapping->coherent = false;
	}
	return mapping;
}

/* Gives a mapping, which begins at @offset of a page, a bus address, or frees it. */
static bool softcard_enter_mapping(struct device *dev, struct softcard_mapping *mapping,
				   unsigned long offset, u64 mask)
{
	struct softcard_dma_space *space = softcard_function_of(dev)->dma;
	unsigned long count = softcard_pages(offset, mapping->size);
	unsigned long flags, page;
	bool fits;

	write_lock_irqsave(&space->lock, flags);
	fits = softcard_reserve(space, count, mask, &page);
	if (fits) {
		mapping->address = ((u64)page << PAGE_SHIFT) + offset;
		softcard_enter(space, page, count, mapping);
	}
	write_unlock_irqrestore(&space->lock, flags);
	if (!fits)
		kfree(mapping);
	return fits;
}

static dma_addr_t softcard_map(struct device *dev, void *memory, size_t size, u64 mask,
			       enum dma_data_direction direction, bool coherent)
{
	struct softcard_mapping *mapping = NULL;

	if (size)
		mapping = softcard_new_mapping(size, 0, direction);
	if (!mapping)
		return DMA_MAPPING_ERROR;
	mapping->memory = memory;
	mapping->coherent = coherent;
	if (!softcard_enter_mapping(dev, mapping, offset_in_page(memory), mask))
		return DMA_MAPPING_ERROR;
	return mapping->address;
}

static void softcard_unmap(struct device *dev, u64 address, size_t size)
{
	struct softcard_dma_space *space = softcard_function_of(dev)->dma;
	struct softcard_mapping *mapping;
	unsigned long flags, count;

	write_lock_irqsave(&space->lock, flags);
	mapping = softcard_dma_find(space, address);
	if (mapping && mapping->address == address) {
		count = softcard_pages(address, mapping->size);
		softcard_enter(space, address >> PAGE_SHIFT, count, NULL);
		bitmap_clear(space->used, address >> PAGE_SHIFT, count + 1);
	}
	write_unlock_irqrestore(&space->lock, flags);
	if (!mapping || mapping->address != address || mapping->size != size) {
		dev_err(dev, "softcard: the driver unmaps %zu bytes at %#llx, which it has not mapped\n",
			size, address);
		if (!mapping || mapping->address != address)
			return;
	}
	kfree(mapping);
}

static dma_addr_t softcard_map_memory(struct device *dev, phys_addr_t phys, size_t size,
				      enum dma_data_direction direction, unsigned long attrs)
{
	/* Another card's BAR is no memory. */
	if (!dev->dma_mask || !pfn_valid(PHYS_PFN(phys)))
		return DMA_MAPPING_ERROR;
	return softcard_map(dev, phys_to_virt(phys), size, *dev->dma_mask, direction, false);
}

static void softcard_unmap_memory(struct device *dev, dma_addr_t address, size_t size,
				  enum dma_data_direction direction, unsigned long attrs)
{
	softcard_unmap(dev, address, size);
}

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 18, 0)
static dma_addr_t softcard_map_page(struct device *dev, struct page *page, unsigned long offset,
				    size_t size, enum dma_data_direction direction,
				    unsigned long attrs)
{
	return softcard_map_memory(dev, page_to_phys(page) + offset, size, direction, attrs);
}
#endif

/* What was mapped as one has addresses that follow one another, and nothing else has. */
static void softcard_unmap_sg(struct device *dev, struct scatterlist *list, int count,
			      enum dma_data_direction direction, unsigned long attrs)
{
	struct scatterlist *sg = list;

	while (count > 0) {
		dma_addr_t address = sg_dma_address(sg);
		size_t size = 0;

		for (; count && sg_dma_address(sg) == address + size; count--, sg = sg_next(sg))
			size += sg_dma_len(sg);
		softcard_unmap(dev, address, size);
	}
}

/*
 * Pieces of a list that begin and end with pages are mapped as one: they cost little then, and the
 * card can take them as one.
 */
static unsigned int softcard_run(struct scatterlist *list, unsigned int count, unsigned long *pages)
{
	struct scatterlist *sg = list;
	unsigned int length = 0;

	*pages = 0;
	while (count--) {
		unsigned long start = sg_phys(sg), end = start + sg->length;

		if (length && offset_in_page(start))
			break;
		if (length && *pages + softcard_pages(start, sg->length) > RUN_PAGES)
			break;
		*pages += softcard_pages(start, sg->length);
		length++;
		if (offset_in_page(end))
			break;
		sg = sg_next(sg);
	}
	return length;
}

static bool softcard_map_run(struct device *dev, struct scatterlist *list, unsigned int count,
			     unsigned long pages, enum dma_data_direction direction)
{
	unsigned long offset = offset_in_page(sg_phys(list)), at = 0, i;
	struct softcard_mapping *mapping;
	struct scatterlist *sg;
	u64 address;
	int j;

	mapping = softcard_new_mapping(0, count > 1 ? pages : 0, direction);
	if (!mapping)
		return false;
	if (count == 1)
		mapping->memory = phys_to_virt(sg_phys(list));
	for_each_sg(list, sg, count, j) {
		unsigned long its = softcard_pages(sg_phys(sg), sg->length);

		mapping->size += sg->length;
		for (i = 0; count > 1 && i < its; i++)
			mapping->page[at++] = phys_to_virt((sg_phys(sg) & PAGE_MASK) +
							   i * PAGE_SIZE);
	}
	if (!softcard_enter_mapping(dev, mapping, offset, *dev->dma_mask))
		return false;
	address = mapping->address;
	for_each_sg(list, sg, count, j) {
		sg_dma_address(sg) = address;
		sg_dma_len(sg) = sg->length;
		address += sg->length;
	}
	return true;
}

static int softcard_map_sg(struct device *dev, struct scatterlist *list, int count,
			   enum dma_data_direction direction, unsigned long attrs)
{
	struct scatterlist *sg;
	unsigned long pages;
	int i, j, run;

	for_each_sg(list, sg, count, i)
		if (!sg->length || !pfn_valid(PHYS_PFN(sg_phys(sg))))
			return -EINVAL;
	for (i = 0, sg = list; i < count; i += run) {
		run = softcard_run(sg, count - i, &pages);
		if (!softcard_map_run(dev, sg, run, pages, direction)) {
			softcard_unmap_sg(dev, list, i, direction, attrs);
			return -ENOMEM;
		}
		for (j = 0; j < run; j++)
			sg = sg_next(sg);
	}
	return count;
}

/*
 * Pages that are counted one by one: what the card's program has mapped of them stays, cut off,
 * until it lets go, and is nobody else's before.
 */
static void *softcard_alloc(struct device *dev, size_t size, dma_addr_t *address, gfp_t gfp,
			    unsigned long attrs)
{
	struct softcard_function *function = softcard_function_of(dev);
	struct softcard_op op = {
		.code = SOFTCARD_OP_DMA_ADDED,
		.function = function->number,
		.value = PAGE_ALIGN(size),
	};
	void *memory;

	gfp &= ~(__GFP_DMA | __GFP_DMA32 | __GFP_HIGHMEM | __GFP_COMP);
	memory = alloc_pages_exact(PAGE_ALIGN(size), gfp | __GFP_ZERO);
	if (!memory)
		return NULL;
	*address = softcard_map(dev, memory, PAGE_ALIGN(size), dev->coherent_dma_mask,
				DMA_BIDIRECTIONAL, true);
	if (*address == DMA_MAPPING_ERROR) {
		free_pages_exact(memory, PAGE_ALIGN(size));
		return NULL;
	}
	op.offset = *address;
	softcard_post(function->card, &op);
	return memory;
}

static void softcard_free_coherent(struct device *dev, size_t size, void *memory,
				   dma_addr_t address, unsigned long attrs)
{
	struct softcard_function *function = softcard_function_of(dev);
	struct softcard_op op = {
		.code = SOFTCARD_OP_DMA_REMOVED,
		.function = function->number,
		.offset = address,
		.value = PAGE_ALIGN(size),
	};

	softcard_unmap(dev, address, PAGE_ALIGN(size));
	softcard_post(function->card, &op);
	free_pages_exact(memory, PAGE_ALIGN(size));
}

static struct page *softcard_alloc_pages(struct device *dev, size_t size, dma_addr_t *address,
					 enum dma_data_direction direction, gfp_t gfp)
{
	void *memory = alloc_pages_exact(size, (gfp & ~__GFP_COMP) | __GFP_ZERO);

	if (!memory)
		return NULL;
	*address = softcard_map(dev, memory, size, dev->coherent_dma_mask, direction, false);
	if (*address == DMA_MAPPING_ERROR) {
		free_pages_exact(memory, size);
		return NULL;
	}
	return virt_to_page(memory);
}

static void softcard_free_pages(struct device *dev, size_t size, struct page *page,
				dma_addr_t address, enum dma_data_direction direction)
{
	softcard_unmap(dev, address, size);
	free_pages_exact(page_address(page), size);
}

static int softcard_mmap_coherent(struct device *dev, struct vm_area_struct *vma, void *memory,
				  dma_addr_t address, size_t size, unsigned long attrs)
{
	unsigned long offset = vma->vm_pgoff << PAGE_SHIFT;

	if (offset >= PAGE_ALIGN(size) ||
	    vma->vm_end - vma->vm_start > PAGE_ALIGN(size) - offset)
		return -ENXIO;
	return remap_pfn_range(vma, vma->vm_start, PHYS_PFN(virt_to_phys(memory) + offset),
			       vma->vm_end - vma->vm_start, vma->vm_page_prot);
}

static int softcard_get_sgtable(struct device *dev, struct sg_table *table, void *memory,
				dma_addr_t address, size_t size, unsigned long attrs)
{
	int err = sg_alloc_table(table, 1, GFP_KERNEL);

	if (!err)
		sg_set_page(table->sgl, virt_to_page(memory), PAGE_ALIGN(size), 0);
	return err;
}

static int softcard_dma_supported(struct device *dev, u64 mask)
{
	return mask >= DMA_BIT_MASK(24);
}

static u64 softcard_required_mask(struct device *dev)
{
	return DMA_BIT_MASK(32);
}

static const struct dma_map_ops softcard_dma_ops = {
	.alloc = softcard_alloc,
	.free = softcard_free_coherent,
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 10, 0)
	.alloc_pages = softcard_alloc_pages,
#else
	.alloc_pages_op = softcard_alloc_pages,
#endif
	.free_pages = softcard_free_pages,
	.mmap = softcard_mmap_coherent,
	.get_sgtable = softcard_get_sgtable,
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 18, 0)
	.map_page = softcard_map_page,
	.unmap_page = softcard_unmap_memory,
#else
	.map_phys = softcard_map_memory,
	.unmap_phys = softcard_unmap_memory,
#endif
	.map_sg = softcard_map_sg,
	.unmap_sg = softcard_unmap_sg,
	.dma_supported = softcard_dma_supported,
	.get_required_mask = softcard_required_mask,
};

void softcard_dma_attach(struct softcard_function *function, struct pci_dev *pdev)
{
	unsigned long flags;

	write_lock_irqsave(&function->dma->lock, flags);
	function->dma->closed = false;
	write_unlock_irqrestore(&function->dma->lock, flags);
	set_dma_ops(&pdev->dev, &softcard_dma_ops);
}

/* The card is dead: what it still moves has been moved when this returns. */
void softcard_dma_settle(struct softcard *card)
{
	unsigned long flags;
	unsigned int i;

	for (i = 0; i < card->function_count; i++) {
		write_lock_irqsave(&card->function[i]->dma->lock, flags);
		write_unlock_irqrestore(&card->function[i]->dma->lock, flags);
	}
}

/* What a driver has left mapped is its fault, and mapped no more. */
void softcard_dma_detach(struct softcard_function *function)
{
	struct softcard_dma_space *space = function->dma;
	struct softcard_mapping *mapping;
	unsigned long i, j, flags, left = 0;

	for (i = 0; i < ARRAY_SIZE(space->leaf); i++) {
		for (j = 0; space->leaf[i] && j < SOFTCARD_LEAF_PAGES; j++) {
			write_lock_irqsave(&space->lock, flags);
			space->closed = true;
			mapping = space->leaf[i][j];
			if (mapping) {
				unsigned long count = softcard_pages(mapping->address,
								     mapping->size);

				softcard_enter(space, mapping->address >> PAGE_SHIFT, count, NULL);
				bitmap_clear(space->used, mapping->address >> PAGE_SHIFT,
					     count + 1);
				left++;
			}
			write_unlock_irqrestore(&space->lock, flags);
			kfree(mapping);
		}
	}
	if (left)
		pr_warn("softcard %x: the driver of function %u has left %lu mappings\n",
			function->card->domain, function->number, left);
}

int softcard_dma_set_function(struct softcard_function *function)
{
	struct softcard_dma_space *space;

	space = kvzalloc(sizeof(*space), GFP_KERNEL_ACCOUNT);
	if (!space)
		return -ENOMEM;
	rwlock_init(&space->lock);
	space->closed = true;
	space->used = bitmap_zalloc(SOFTCARD_IOVA_PAGES, GFP_KERNEL_ACCOUNT);
	if (!space->used) {
		kvfree(space);
		return -ENOMEM;
	}
	bitmap_set(space->used, 0, FIRST_PAGE);
	bitmap_set(space->used, MESSAGES, MESSAGES_PAGES);
	space->next = FIRST_PAGE;
	function->dma = space;
	return 0;
}

void softcard_dma_free_function(struct softcard_function *function)
{
	struct softcard_dma_space *space = function->dma;
	unsigned int i;

	if (!space)
		return;
	for (i = 0; i < ARRAY_SIZE(space->leaf); i++)
		free_page((unsigned long)space->leaf[i]);
	bitmap_free(space->used);
	kvfree(space);
	function->dma = NULL;
}
