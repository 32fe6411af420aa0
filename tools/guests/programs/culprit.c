// A module with a bug for debuggers to find: one of its functions writes beyond an array, over a
// pointer of a list that another walks later.
//
// Shelves are in a list. A clerk labels them, over and over, with as many labels as a shelf has room
// for; once it is told to write a label too many. A visitor who comes much later crashes.

#include <linux/delay.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/slab.h>

#define LABELS 6
#define SHELVES 8

struct shelf {
	u64 labels[LABELS];
	struct list_head list;
	u32 visits;
};

static bool go;
module_param(go, bool, 0600);
MODULE_PARM_DESC(go, "work begins when this is set");

static LIST_HEAD(shelves);
static struct shelf *all[SHELVES];

static noinline void write_label(struct shelf *shelf, unsigned int at, u64 label)
{
	shelf->labels[at] = label;
}

static noinline void clerk(unsigned int round, unsigned int count)
{
	unsigned int at;

	for (at = 0; at < count; at++)
		write_label(all[round % SHELVES], at, 0x1abe100000000000ULL + round);
}

// Shelves are taken out and put in again, which writes the same pointers, as it should.
static noinline void rearrange(unsigned int round)
{
	list_move_tail(&all[round % SHELVES]->list, &shelves);
}

static noinline void visit(void)
{
	struct shelf *shelf;

	list_for_each_entry(shelf, &shelves, list)
		shelf->visits++;
}

static int work(void *unused)
{
	unsigned int round;

	while (!READ_ONCE(go))
		msleep(10);
	for (round = 0; round < 4000; round++) {
		if (round < 2000) {
			rearrange(round);
			visit();
		}
		clerk(round, round == 2021 ? LABELS + 1 : LABELS);
		if (round % 40 == 0)
			usleep_range(1000, 2000);
	}
	pr_info("culprit: the visitor comes\n");
	visit();
	return 0;
}

static int __init begin(void)
{
	unsigned int at;
	struct task_struct *task;

	for (at = 0; at < SHELVES; at++) {
		all[at] = kzalloc(sizeof(*all[at]), GFP_KERNEL);
		if (!all[at])
			return -ENOMEM;
		list_add_tail(&all[at]->list, &shelves);
	}
	task = kthread_run(work, NULL, "culprit");
	return PTR_ERR_OR_ZERO(task);
}

module_init(begin);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("spoils a list, once");
