// SPDX-License-Identifier: GPL-2.0-only
/*
 * Coherent memory of drivers, mapped by the card's program.
 *
 * Pages get into the program's address space as it touches them, and are counted one by one: those
 * that the driver has freed stay the program's until it unmaps them, and are nobody else's before.
 * When the card is pulled they are taken away. What is touched then is a page of the program's own.
 */
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/rwsem.h>
#include <linux/version.h>

#include "softcard.h"

/* A page of coherent memory, with a reference; NULL where no driver has allocated it. */
static struct page *softcard_coherent_page(struct softcard_dma_space *space, u64 address)
{
	struct softcard_mapping *mapping;
	struct page *page = NULL;
	unsigned long flags;

	read_lock_irqsave(&space->lock, flags);
	mapping = softcard_dma_find(space, address);
	if (mapping && mapping->coherent) {
		page = virt_to_page(mapping->memory + (address - mapping->address));
		get_page(page);
	}
	read_unlock_irqrestore(&space->lock, flags);
	return page;
}

/* Whether a driver has allocated just that, as a whole. */
static bool softcard_is_allocated(struct softcard_dma_space *space, u64 address, size_t size)
{
	struct softcard_mapping *mapping;
	unsigned long flags;
	bool found;

	read_lock_irqsave(&space->lock, flags);
	mapping = softcard_dma_find(space, address);
	found = mapping && mapping->coherent && mapping->address == address &&
		mapping->size == size;
	read_unlock_irqrestore(&space->lock, flags);
	return found;
}

static vm_fault_t softcard_coherent_fault(struct vm_fault *vmf)
{
	struct softcard *card = vmf->vma->vm_file->private_data;
	u64 place = (u64)vmf->pgoff << PAGE_SHIFT;
	u64 number = place / SOFTCARD_MAP_FUNCTION - 1;
	vm_fault_t result = VM_FAULT_NOPAGE;
	struct page *page = NULL;
	int err;

	down_read(&card->cut_off);
	if (!READ_ONCE(card->dead))
		page = softcard_coherent_page(card->function[number]->dma,
					      place & (SOFTCARD_MAP_FUNCTION - 1));
	if (page) {
		err = vm_insert_page(vmf->vma, vmf->address & PAGE_MASK, page);
		/* Another thread may have been quicker. */
		if (err && err != -EBUSY)
			result = VM_FAULT_SIGBUS;
		put_page(page);
	} else {
		vmf->page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
		result = vmf->page ? 0 : VM_FAULT_OOM;
	}
	up_read(&card->cut_off);
	return result;
}

static const struct vm_operations_struct softcard_coherent_vm_ops = {
	.fault = softcard_coherent_fault,
};

/**
 * softcard_coherent_mmap - the card's program maps coherent memory
 * @card: the card
 * @vma: where; its offset is SOFTCARD_MAP_COHERENT()
 *
 * Return: 0, -EINVAL, -EACCES, -ENXIO where no driver has allocated just that.
 */
int softcard_coherent_mmap(struct softcard *card, struct vm_area_struct *vma)
{
	unsigned long set = VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP | VM_MIXEDMAP;
	u64 place = (u64)vma->vm_pgoff << PAGE_SHIFT;
	u64 number = place / SOFTCARD_MAP_FUNCTION - 1;

	if (number >= card->function_count || !(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	if (vma->vm_flags & VM_EXEC)
		return -EACCES;
	if (READ_ONCE(card->state) == SOFTCARD_NEW || READ_ONCE(card->dead) ||
	    !softcard_is_allocated(card->function[number]->dma,
				   place & (SOFTCARD_MAP_FUNCTION - 1),
				   vma->vm_end - vma->vm_start))
		return -ENXIO;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_mod(vma, set, VM_MAYEXEC);
#else
	vma->vm_flags = (vma->vm_flags | set) & ~VM_MAYEXEC;
#endif
	vma->vm_ops = &softcard_coherent_vm_ops;
	return 0;
}

/* The card is dead: from now on, its program's mappings lead nowhere. */
void softcard_coherent_cut_off(struct softcard *card)
{
	down_write(&card->cut_off);
	unmap_mapping_range(&card->mapping, SOFTCARD_MAP_FUNCTION, 0, 1);
	up_write(&card->cut_off);
}

/* Finds the mappings of a descriptor, whose inode it shares with others. */
void softcard_coherent_init(struct softcard *card)
{
	init_rwsem(&card->cut_off);
	address_space_init_once(&card->mapping);
	card->mapping.a_ops = &empty_aops;
}

void softcard_coherent_open(struct softcard *card, struct file *file)
{
	card->mapping.host = file_inode(file);
	file->f_mapping = &card->mapping;
}
