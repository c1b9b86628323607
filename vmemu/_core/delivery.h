/*
 * Delivery of missing pages by the vCPU that misses them: a touch is a SIGBUS in its own thread,
 * which asks the source on a channel of its own, places the page and makes the touch again. No
 * other thread has to be woken, and vCPUs share no channel.
 */
#ifndef VM_DELIVERY_H
#define VM_DELIVERY_H

#include <stdint.h>

#include "asking.h"
#include "error.h"
#include "incoming.h"
#include "receiver.h"

#define VM_NO_PAGE UINT64_MAX

/* Of one vCPU; Python owns it. Its thread alone serves with it, others look and wake. */
struct vm_delivery {
    struct vm_incoming *in;
    uint32_t *tid;    /* as vm_vcpu has it */
    uint64_t *faults; /* where the faults of the thread are counted */
    int page_fd;      /* read end */
    struct vm_asking asking;
    struct vm_receiver receiver;
    struct vm_place_stats placed;
    struct vm_stages stages;
    uint64_t retried;   /* the last address that was touched again without a page being fetched */
    uint64_t waits_for; /* the page that somebody else brings, as a key; or VM_NO_PAGE */
    uint32_t woken;     /* futex: moves when there may be something to go on for */
    uint32_t failed;    /* error says why; set last */
    struct vm_error error;
};

/*
 * Open and close what a vCPU needs to serve itself. The descriptors, both blocking, stay its
 * owner's. Closed only when the thread serves no more.
 */
int vm_delivery_open(struct vm_delivery *d, struct vm_incoming *in, uint32_t vcpu, int page_fd,
                     int return_fd, struct vm_error *err);
void vm_delivery_close(struct vm_delivery *d);

/* By the vCPU's thread, around its replay. */
void vm_delivery_enter(struct vm_delivery *d);
void vm_delivery_leave(void);

/*
 * It is over: whoever waits for a page touches its memory once more, which must be ordinary memory
 * by now.
 */
void vm_deliveries_let_go(struct vm_incoming *in);

#endif
