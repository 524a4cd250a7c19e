// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reads that cannot sleep keep their processor until the card's program answers. Where a thread of
 * that program waits for just this processor, it is sent to another one for as long.
 */
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/list.h>
#include <linux/pid.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>

#include "softcard.h"

#define AT_ONCE		16
#define PAUSE_US	50
/* A program whose threads come back again and again is not worth it. */
#define MOST		64

/**
 * struct softcard_move - a thread that was sent away
 * @node: in the list of those
 * @task: the thread
 * @allowed: where it may run otherwise
 */
struct softcard_move {
	struct list_head node;
	struct task_struct *task;
	struct cpumask allowed;
};

/* Whose threads answer; called by them, before they sleep. */
void softcard_rescue_set_program(struct softcard *card)
{
	struct pid *before;

	if (READ_ONCE(card->program) == task_tgid(current))
		return;
	mutex_lock(&card->lock);
	before = card->program;
	WRITE_ONCE(card->program, get_pid(task_tgid(current)));
	mutex_unlock(&card->lock);
	if (before) {
		synchronize_rcu();
		put_pid(before);
	}
}

static unsigned int softcard_waiting_threads(struct softcard *card, unsigned int cpu,
					     struct task_struct **found)
{
	struct task_struct *leader, *task;
	unsigned int count = 0;

	rcu_read_lock();
	leader = pid_task(READ_ONCE(card->program), PIDTYPE_TGID);
	if (leader) {
		for_each_thread(leader, task) {
			if (task_cpu(task) != cpu || READ_ONCE(task->on_cpu) ||
			    !cpumask_test_cpu(cpu, task->cpus_ptr))
				continue;
			found[count++] = get_task_struct(task);
			if (count == AT_ONCE)
				break;
		}
	}
	rcu_read_unlock();
	return count;
}

static void softcard_send_away(struct task_struct *task, unsigned int cpu, struct list_head *moves)
{
	struct softcard_move *move = kmalloc(sizeof(*move), GFP_KERNEL);
	struct cpumask *others = kmalloc(sizeof(*others), GFP_KERNEL);

	if (move && others) {
		cpumask_copy(&move->allowed, task->cpus_ptr);
		cpumask_copy(others, &move->allowed);
		cpumask_clear_cpu(cpu, others);
		if (cpumask_intersects(others, cpu_online_mask) &&
		    !set_cpus_allowed_ptr(task, others)) {
			move->task = get_task_struct(task);
			list_add(&move->node, moves);
			move = NULL;
		}
	}
	kfree(others);
	kfree(move);
}

static void softcard_let_return(struct list_head *moves)
{
	struct softcard_move *move, *next;

	list_for_each_entry_safe(move, next, moves, node) {
		set_cpus_allowed_ptr(move->task, &move->allowed);
		put_task_struct(move->task);
		kfree(move);
	}
}

static void softcard_rescue_work(struct work_struct *work)
{
	struct softcard *card = container_of(work, struct softcard, rescue_work);
	int cpu = READ_ONCE(card->rescue_cpu);
	struct task_struct *found[AT_ONCE];
	unsigned int i, count, moved = 0;
	LIST_HEAD(moves);

	while (READ_ONCE(card->rescue_wanted)) {
		count = softcard_waiting_threads(card, cpu, found);
		for (i = 0; i < count; i++) {
			if (moved++ < MOST)
				softcard_send_away(found[i], cpu, &moves);
			put_task_struct(found[i]);
		}
		usleep_range(PAUSE_US, 2 * PAUSE_US);
	}
	softcard_let_return(&moves);
	/* Another read may begin when the threads are back. */
	smp_store_release(&card->rescue_cpu, -1);
	softcard_put(card);
}

/**
 * softcard_rescue_begin - keep the card's program off this processor
 * @card: the card
 *
 * Return: whether softcard_rescue_end() has to follow; not where another read does so already.
 */
bool softcard_rescue_begin(struct softcard *card)
{
	int cpu = smp_processor_id();
	unsigned int other = cpumask_any_but(cpu_online_mask, cpu);

	if (other >= nr_cpu_ids || !READ_ONCE(card->program) ||
	    cmpxchg(&card->rescue_cpu, -1, cpu) != -1)
		return false;
	softcard_get(card);
	WRITE_ONCE(card->rescue_wanted, true);
	queue_work_on(other, system_highpri_wq, &card->rescue_work);
	return true;
}

void softcard_rescue_end(struct softcard *card)
{
	WRITE_ONCE(card->rescue_wanted, false);
}

void softcard_rescue_init(struct softcard *card)
{
	card->rescue_cpu = -1;
	INIT_WORK(&card->rescue_work, softcard_rescue_work);
}

void softcard_rescue_release(struct softcard *card)
{
	put_pid(card->program);
}
