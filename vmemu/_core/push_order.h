/*
 * The order of the background push. Whatever it is, each page is sent once: the order says which of
 * those that nobody has claimed comes next.
 */
#ifndef VM_PUSH_ORDER_H
#define VM_PUSH_ORDER_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"

struct vm_source;

enum vm_push_order {
    VM_PUSH_AROUND_FAULTS = 0, /* on behind the last page that was asked for, round all blocks */
    VM_PUSH_SEQUENTIAL = 1,    /* all blocks, from the first page to the last */
    VM_PUSH_RECORDED = 2,      /* as listed, then the rest as sequential */
};

enum { VM_CURSOR_SHIFT = 40 }; /* a place: block << 40 | page; 2^40 pages a block, 2^24 blocks */

/* Choose the order before the push begins; list: places, copied. 0, or -1 for a place that does not
 * exist, or without memory. */
int vm_push_order_set(struct vm_source *s, uint32_t order, const uint64_t *list, uint64_t count,
                      struct vm_error *err);

/*
 * The next page that nobody has claimed, and up to which page the order wants those behind it too
 * (exclusive); false: none is left. Of the thread that pushes.
 */
bool vm_push_next(struct vm_source *s, uint32_t *block, uint64_t *page, uint64_t *end);
/* Pages up to end were sent: the push goes on behind them, unless it has a request to follow. */
void vm_push_passed(struct vm_source *s, uint32_t block, uint64_t end);
/* A page was asked for; end: behind it and what is carried along. */
void vm_push_asked(struct vm_source *s, uint32_t block, uint64_t end);

#endif
