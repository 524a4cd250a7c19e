// SPDX-License-Identifier: GPL-2.0-only
/*
 * A card's life, and its ring.
 *
 * Drivers put entries into the ring in whatever context they are in; one program takes them out. A
 * read waits for its answer in a slot: it sleeps where that is legal, and spins where it is not.
 */
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/sched/mm.h>
#include <linux/sched/user.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>
#include <linux/vmalloc.h>

#include "softcard.h"

#define DEFAULT_ATOMIC_TIMEOUT_US	50000
#define MAX_ATOMIC_TIMEOUT_US		1000000
#define WRITE_PATIENCE			10
/* Where it can sleep, a read first spins for as long as a quick answer takes. */
#define SPIN_NS				50000
/* Where it cannot, the card's program has this long to answer before it is looked after. */
#define RESCUE_NS			100000
/* A program's store and load are not ordered: a wake-up may be missed, and is then made up for. */
#define NAP				msecs_to_jiffies(4)
/* How long a process that ends waits. */
#define LAST_WAIT			(5 * HZ)
/* Any user may read a configuration space, with interrupts off and a lock that is everybody's. */
#define CONFIG_PATIENCE_NS		(50 * NSEC_PER_MSEC)

static_assert(sizeof(struct softcard_op) == 32);
static_assert(offsetof(struct softcard_ring, ops) == 4096);

/* Cards that are on the bus; read under RCU. */
LIST_HEAD(softcard_list);
static DEFINE_SPINLOCK(softcard_list_lock);
static struct workqueue_struct *softcard_wq, *softcard_free_wq;
static atomic_t softcard_count;

bool softcard_may_sleep(void)
{
	if (!IS_ENABLED(CONFIG_PREEMPT_COUNT))
		return false;
	return preemptible() && !rcu_preempt_depth() && !is_idle_task(current);
}

void softcard_get(struct softcard *card)
{
	kref_get(&card->ref);
}

bool softcard_tryget(struct softcard *card)
{
	return kref_get_unless_zero(&card->ref);
}

static void softcard_free_memories(struct softcard_function *function)
{
	struct softcard_memory *memory, *next;

	list_for_each_entry_safe(memory, next, &function->memories, node) {
		unpin_user_pages_dirty_lock(memory->page, memory->pages, true);
		kvfree(memory->page);
		kfree(memory);
	}
}

static void softcard_free(struct work_struct *work)
{
	struct softcard *card = container_of(work, struct softcard, free_work);
	unsigned int i;

	softcard_pci_release(card);
	softcard_irq_release(card);
	if (card->state != SOFTCARD_NEW)
		softcard_irq_settle(card);
	for (i = 0; i < card->function_count; i++) {
		struct softcard_function *function = card->function[i];

		if (!function)
			continue;
		softcard_irq_free_function(function);
		softcard_dma_free_function(function);
		softcard_free_memories(function);
		kfree(function);
	}
	if (card->locked_pages)
		account_locked_vm(card->mm, card->locked_pages, false);
	softcard_rescue_release(card);
	mmdrop(card->mm);
	vfree(card->ring);
	kvfree(card);
	atomic_dec(&softcard_count);
	module_put(THIS_MODULE);
}

static void softcard_release(struct kref *ref)
{
	struct softcard *card = container_of(ref, struct softcard, ref);

	queue_work(softcard_free_wq, &card->free_work);
}

void softcard_put(struct softcard *card)
{
	kref_put(&card->ref, softcard_release);
}

static void softcard_add_work(struct work_struct *work)
{
	struct softcard *card = container_of(work, struct softcard, add_work);
	struct softcard_op op = { .code = SOFTCARD_OP_ADDED };

	softcard_pci_add(card);
	softcard_post(card, &op);
	softcard_put(card);
}

/* A dead card writes to no memory any more; then drivers may hear of it. */
static void softcard_die_work(struct work_struct *work)
{
	struct softcard *card = container_of(work, struct softcard, die_work);

	softcard_coherent_cut_off(card);
	softcard_dma_settle(card);
	softcard_port_link_down(card);
	softcard_put(card);
}

static void softcard_remove_work(struct work_struct *work)
{
	struct softcard *card = container_of(work, struct softcard, remove_work);
	struct softcard_op op = { .code = SOFTCARD_OP_GONE };

	flush_work(&card->add_work);
	flush_work(&card->die_work);
	softcard_pci_remove(card);
	spin_lock(&softcard_list_lock);
	list_del_rcu(&card->node);
	spin_unlock(&softcard_list_lock);
	synchronize_rcu();
	mutex_lock(&card->lock);
	card->state = SOFTCARD_GONE;
	mutex_unlock(&card->lock);
	softcard_user_forget_eventfds(card);
	softcard_post(card, &op);
	/* The program of a dead card hears of it by this alone. */
	wake_up_interruptible_poll(&card->poll, EPOLLIN | EPOLLHUP);
	softcard_put(card);
}

/* An orderly removal may become a surprise meanwhile. */
static void softcard_remove(struct softcard *card)
{
	if (!atomic_xchg(&card->removing, 1))
		queue_work(softcard_wq, &card->remove_work);
}

struct softcard *softcard_create(const struct softcard_create *create)
{
	struct softcard *card;
	unsigned int i, j;
	int err;

	if (!create->functions || create->functions > SOFTCARD_FUNCTIONS || create->flags ||
	    create->atomic_timeout_us > MAX_ATOMIC_TIMEOUT_US ||
	    memchr_inv(create->reserved, 0, sizeof(create->reserved)))
		return ERR_PTR(-EINVAL);
	if (atomic_inc_return(&softcard_count) > SOFTCARD_CARDS) {
		/* Those that nobody has any more do not count. */
		flush_workqueue(softcard_free_wq);
		if (atomic_read(&softcard_count) > SOFTCARD_CARDS) {
			err = -ENOSPC;
			goto uncount;
		}
	}
	err = -ENOMEM;
	card = kvzalloc(sizeof(*card), GFP_KERNEL_ACCOUNT);
	if (!card)
		goto uncount;
	card->ring = vmalloc_user(PAGE_ALIGN(sizeof(*card->ring)));
	if (!card->ring)
		goto free_card;
	kref_init(&card->ref);
	INIT_LIST_HEAD(&card->node);
	INIT_LIST_HEAD(&card->eventfds);
	INIT_WORK(&card->free_work, softcard_free);
	INIT_WORK(&card->add_work, softcard_add_work);
	INIT_WORK(&card->remove_work, softcard_remove_work);
	INIT_WORK(&card->die_work, softcard_die_work);
	mutex_init(&card->lock);
	softcard_rescue_init(card);
	softcard_coherent_init(card);
	mutex_init(&card->eventfd_lock);
	raw_spin_lock_init(&card->ring_lock);
	raw_spin_lock_init(&card->port.lock);
	init_waitqueue_head(&card->poll);
	init_waitqueue_head(&card->left);
	for (i = 0; i < SOFTCARD_SLOTS; i++)
		init_waitqueue_head(&card->slots[i].wait);
	card->read_timeout_ms = create->read_timeout_ms;
	card->atomic_timeout_us = create->atomic_timeout_us ?: DEFAULT_ATOMIC_TIMEOUT_US;
	card->domain = -1;
	card->function_count = create->functions;
	for (i = 0; i < create->functions; i++) {
		struct softcard_function *function;

		function = kzalloc(sizeof(*function), GFP_KERNEL_ACCOUNT);
		if (!function)
			goto free_functions;
		function->card = card;
		function->number = i;
		raw_spin_lock_init(&function->irq_lock);
		INIT_LIST_HEAD(&function->memories);
		for (j = 0; j < SOFTCARD_CONFIG_SIZE; j++)
			function->config[j] = 0xff;
		card->function[i] = function;
	}
	card->mm = current->mm;
	mmgrab(card->mm);
	__module_get(THIS_MODULE);
	return card;

free_functions:
	for (i = 0; i < create->functions; i++)
		kfree(card->function[i]);
	vfree(card->ring);
free_card:
	kvfree(card);
uncount:
	atomic_dec(&softcard_count);
	return ERR_PTR(err);
}

int softcard_plug(struct softcard *card, struct softcard_plug *plug)
{
	unsigned int i;
	int err;

	lockdep_assert_held(&card->lock);
	if (card->state != SOFTCARD_NEW || card->dead)
		return -EBUSY;
	for (i = 0; i < card->function_count; i++)
		if (!card->function[i]->present)
			return -EINVAL;
	err = softcard_pci_prepare(card, plug);
	if (err)
		return err;
	err = softcard_irq_prepare(card);
	if (err) {
		softcard_pci_release(card);
		return err;
	}
	card->state = SOFTCARD_PLUGGED;
	spin_lock(&softcard_list_lock);
	list_add_tail_rcu(&card->node, &softcard_list);
	spin_unlock(&softcard_list_lock);
	softcard_get(card);	/* the removal's, which always comes */
	softcard_get(card);
	queue_work(softcard_wq, &card->add_work);
	return 0;
}

int softcard_unplug(struct softcard *card)
{
	lockdep_assert_held(&card->lock);
	if (card->state != SOFTCARD_PLUGGED)
		return card->state == SOFTCARD_NEW ? -ENXIO : -EALREADY;
	card->state = SOFTCARD_UNPLUGGING;
	softcard_remove(card);
	return 0;
}

/*
 * Drivers access the card under whatever locks they hold, and in interrupts; with PREEMPT_RT, where
 * that would matter, the module is not loaded.
 */
#ifdef DEFINE_WAIT_OVERRIDE_MAP
static DEFINE_WAIT_OVERRIDE_MAP(softcard_wake_map, LD_WAIT_CONFIG);
#define softcard_wake_begin()	lock_map_acquire_try(&softcard_wake_map)
#define softcard_wake_end()	lock_map_release(&softcard_wake_map)
#else
#define softcard_wake_begin()	do { } while (0)
#define softcard_wake_end()	do { } while (0)
#endif

static void softcard_wake_all(struct softcard *card)
{
	unsigned int i;

	softcard_wake_begin();
	for (i = 0; i < SOFTCARD_SLOTS; i++)
		wake_up(&card->slots[i].wait);
	wake_up_interruptible_poll(&card->poll, EPOLLIN | EPOLLHUP);
	softcard_wake_end();
}

/**
 * softcard_kill - surprise removal, from any context
 * @card: the card
 * @why: for the log, or NULL where its program wanted it
 */
void softcard_kill(struct softcard *card, const char *why)
{
	unsigned long flags;
	bool was;

	raw_spin_lock_irqsave(&card->ring_lock, flags);
	was = card->dead;
	WRITE_ONCE(card->dead, true);
	raw_spin_unlock_irqrestore(&card->ring_lock, flags);
	if (was)
		return;
	if (why)
		pr_err("softcard %x: pulled: %s\n", card->domain, why);
	softcard_pci_disconnected(card);
	softcard_wake_all(card);
	if (READ_ONCE(card->state) == SOFTCARD_NEW)
		return;
	softcard_get(card);
	queue_work(softcard_wq, &card->die_work);
	softcard_remove(card);
}

/**
 * softcard_kill_all - surprise removal of every card
 * @why: for the log
 *
 * Returns when drivers have let go.
 */
void softcard_kill_all(const char *why)
{
	struct softcard *card;

	rcu_read_lock();
	list_for_each_entry_rcu(card, &softcard_list, node)
		softcard_kill(card, why);
	rcu_read_unlock();
	flush_workqueue(softcard_wq);
}

/* The ring. */

static void softcard_notify(struct softcard *card)
{
	/* Pairs with the barrier of SOFTCARD_ARM: either it sees the head, or this sees @armed. */
	smp_mb();
	if (READ_ONCE(card->armed)) {
		WRITE_ONCE(card->armed, false);
		softcard_wake_begin();
		wake_up_interruptible_poll(&card->poll, EPOLLIN);
		softcard_wake_end();
	}
}

/* Returns -EAGAIN where there is no room. */
static int softcard_try_post(struct softcard *card, const struct softcard_op *op)
{
	struct softcard_ring *ring = card->ring;
	unsigned long flags;
	int err = 0;
	u32 used;

	raw_spin_lock_irqsave(&card->ring_lock, flags);
	used = card->head - READ_ONCE(ring->tail);
	if (card->dead) {
		err = -ENODEV;
	} else if (used > SOFTCARD_RING_ENTRIES) {
		err = -EPROTO;
	} else if (used == SOFTCARD_RING_ENTRIES) {
		err = -EAGAIN;
	} else {
		/* The program's entries are read before they are overwritten. */
		smp_mb();
		ring->ops[card->head % SOFTCARD_RING_ENTRIES] = *op;
		card->head++;
		/* The entry is there when the program sees the head. */
		smp_store_release(&ring->head, card->head);
	}
	raw_spin_unlock_irqrestore(&card->ring_lock, flags);
	if (!err)
		softcard_notify(card);
	return err;
}

/*
 * Whoever ends may be the one that the card waits for, and its descriptors are not closed before:
 * so nobody waits for ever then.
 */
static void softcard_wait_no_longer(struct softcard *card, unsigned long *ending)
{
	if (!fatal_signal_pending(current) && !(current->flags & PF_EXITING))
		return;
	*ending = *ending ?: jiffies | 1;
	if (time_after(jiffies, *ending + LAST_WAIT))
		softcard_kill(card, "a process that ends has waited for its program");
}

/**
 * softcard_post - put an entry into the ring; waits for room
 * @card: the card
 * @op: the entry
 *
 * A write is never lost: who can sleep waits as long as it takes. Who cannot waits for a while, and
 * then the card is pulled, since a driver must not go on as if its write had arrived.
 */
int softcard_post(struct softcard *card, const struct softcard_op *op)
{
	u64 patience = (u64)card->atomic_timeout_us * NSEC_PER_USEC * WRITE_PATIENCE;
	unsigned long ending = 0;
	u64 start = 0, waited;
	bool rescue = false;
	int err;

	while ((err = softcard_try_post(card, op)) == -EAGAIN) {
		if (softcard_may_sleep()) {
			/* Not "uninterruptible": a stopped program is no hung task. */
			schedule_timeout_idle(1);
			softcard_wait_no_longer(card, &ending);
			continue;
		}
		start = start ?: ktime_get_mono_fast_ns();
		waited = ktime_get_mono_fast_ns() - start;
		if (waited > patience || num_online_cpus() == 1) {
			softcard_kill(card, "its program does not take writes that cannot wait");
			err = -ENODEV;
			break;
		}
		if (!rescue && waited > RESCUE_NS)
			rescue = softcard_rescue_begin(card);
		cpu_relax();
	}
	if (rescue)
		softcard_rescue_end(card);
	if (err == -EPROTO)
		softcard_kill(card, "its program has written nonsense into the ring");
	return err;
}

static int softcard_take_slot(struct softcard *card)
{
	unsigned int slot;

	do {
		slot = find_first_zero_bit(card->slots_used, SOFTCARD_SLOTS);
		if (slot >= SOFTCARD_SLOTS)
			return -EAGAIN;
	} while (test_and_set_bit(slot, card->slots_used));
	return slot;
}

/* Whoever can sleep only waits for a quick answer. */
static bool softcard_spin(struct softcard *card, u64 *sequence, u64 wanted)
{
	u64 deadline = ktime_get_mono_fast_ns() + SPIN_NS;

	/* Pairs with the program, which stores the value first. */
	while (smp_load_acquire(sequence) != wanted) {
		if (READ_ONCE(card->dead) || ktime_get_mono_fast_ns() > deadline || need_resched())
			return false;
		cpu_relax();
	}
	return true;
}

/* Whoever cannot sleep sees to it that the card's program does not wait for this processor. */
static bool softcard_spin_atomic(struct softcard *card, u64 *sequence, u64 wanted, u64 limit)
{
	u64 start = ktime_get_mono_fast_ns(), now = start;
	bool answered, rescue = false;

	softcard_vector_reads();
	for (;;) {
		/* As in softcard_spin(). */
		answered = smp_load_acquire(sequence) == wanted;
		if (answered || READ_ONCE(card->dead) || now - start > limit)
			break;
		if (!rescue && now - start > RESCUE_NS)
			rescue = softcard_rescue_begin(card);
		cpu_relax();
		now = ktime_get_mono_fast_ns();
	}
	if (rescue)
		softcard_rescue_end(card);
	return answered;
}

static bool softcard_sleep(struct softcard *card, struct softcard_slot *slot,
			   struct softcard_answer *answer)
{
	unsigned long end = jiffies + msecs_to_jiffies(card->read_timeout_ms);
	u64 wanted = slot->sequence;
	unsigned long ending = 0;
	DEFINE_WAIT(wait);
	bool found;

	WRITE_ONCE(answer->sleeper, 1);
	for (;;) {
		prepare_to_wait(&slot->wait, &wait, TASK_IDLE);
		/* Either the program sees the sleeper, or this its answer. */
		smp_mb();
		/* As in softcard_spin(). */
		found = smp_load_acquire(&answer->sequence) == wanted;
		if (found || READ_ONCE(card->dead))
			break;
		if (card->read_timeout_ms && time_after(jiffies, end))
			break;
		schedule_timeout(NAP);
		softcard_wait_no_longer(card, &ending);
	}
	finish_wait(&slot->wait, &wait);
	WRITE_ONCE(answer->sleeper, 0);
	return found;
}

static void softcard_tell_timeout(const struct softcard *card, const struct softcard_op *op)
{
	if (op->code == SOFTCARD_OP_CONFIG_READ)
		pr_warn_ratelimited("softcard %x: completion timeout: function %u, configuration space + %#llx\n",
				    card->domain, op->function, op->offset);
	else
		pr_warn_ratelimited("softcard %x: completion timeout: function %u, BAR %u + %#llx\n",
				    card->domain, op->function, op->bar, op->offset);
}

/**
 * softcard_ask - put a read into the ring, behind all that came before, and wait for its answer
 * @card: the card
 * @op: the entry; its slot and value are filled in
 * @answered: returned: whether an answer came
 *
 * Return: the answer, or all-ones of the access's size.
 */
u64 softcard_ask(struct softcard *card, struct softcard_op *op, bool *answered)
{
	bool sleeps = softcard_may_sleep();
	u64 limit = (u64)card->atomic_timeout_us * NSEC_PER_USEC;
	u64 value = softcard_all_ones(op->size);
	struct softcard_answer *answer;
	struct softcard_slot *slot;
	unsigned long ending = 0;
	int number;

	*answered = false;
	/* Nobody could answer while this processor, the only one, does not return. */
	if (READ_ONCE(card->dead) || (!sleeps && num_online_cpus() == 1))
		return value;
	while ((number = softcard_take_slot(card)) < 0) {
		if (READ_ONCE(card->dead) || !sleeps)
			return value;
		schedule_timeout_idle(1);
		softcard_wait_no_longer(card, &ending);
	}
	slot = &card->slots[number];
	answer = &card->ring->answers[number];
	slot->sequence++;
	op->slot = number;
	op->value = slot->sequence;
	if (softcard_post(card, op))
		goto out;
	if (op->code == SOFTCARD_OP_CONFIG_READ)
		limit = min_t(u64, limit, CONFIG_PATIENCE_NS);
	if (!sleeps)
		*answered = softcard_spin_atomic(card, &answer->sequence, slot->sequence, limit);
	else
		*answered = (num_online_cpus() > 1 &&
			     softcard_spin(card, &answer->sequence, slot->sequence)) ||
			    softcard_sleep(card, slot, answer);
	if (*answered)
		value &= READ_ONCE(answer->value);
	else if (!READ_ONCE(card->dead))
		softcard_tell_timeout(card, op);
out:
	/* The slot is free when nothing of it is used any more. */
	smp_mb__before_atomic();
	clear_bit(number, card->slots_used);
	return value;
}

int softcard_card_init(void)
{
	softcard_wq = alloc_workqueue("softcard", WQ_UNBOUND, 0);
	if (!softcard_wq)
		return -ENOMEM;
	softcard_free_wq = alloc_workqueue("softcard-free", WQ_UNBOUND, 0);
	if (!softcard_free_wq) {
		destroy_workqueue(softcard_wq);
		return -ENOMEM;
	}
	return 0;
}

void softcard_card_exit(void)
{
	destroy_workqueue(softcard_free_wq);
	destroy_workqueue(softcard_wq);
}
