/* vCPUs that serve themselves, and wait for a page that somebody else brings. */
#ifndef VM_WAITING_H
#define VM_WAITING_H

#include <stdbool.h>

#include "delivery.h"
#include "util.h"

static inline bool vm_delivery_has(const struct vm_delivery *d, struct vm_request q)
{
    return vm_bit_test(d->in->ram->block[q.block].received, q.page);
}

static inline bool vm_delivery_is_over(const struct vm_delivery *d)
{
    return vm_get_acquire(&d->in->over);
}

/* Wait until the page is there or it is over. */
void vm_delivery_wait(struct vm_delivery *d, struct vm_request q);

/* Wait until it is over. */
void vm_delivery_wait_for_end(struct vm_delivery *d);

/* Have a vCPU that waits look again. */
void vm_delivery_wake(struct vm_delivery *d);

/* Pages were placed and their bits are set: wake those that wait for one of them. */
void vm_deliveries_wake(struct vm_incoming *in, uint32_t block, uint64_t first, uint64_t pages);

#endif
