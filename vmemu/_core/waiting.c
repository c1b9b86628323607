/*
 * A page may be asked for by one vCPU and be touched by another, be on its way with the push, or
 * be fetched for a client. Each page is asked for once (the requested bit) and sent once (the
 * source's sent bit); so who finds it asked for, or is told by the source that it went another way,
 * waits until it is placed. Who places looks for such waiters after it has set the received bit,
 * and a waiter looks at that bit after it has said what it waits for, each with a full fence
 * between the two: one of them sees the other.
 */
#include "waiting.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util.h"

enum { KEY_SHIFT = 40 }; /* 2^40 pages a block, 2^24 blocks */

static void futex_wait(uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static uint64_t key_of(uint32_t block, uint64_t page)
{
    return (uint64_t)block << KEY_SHIFT | page;
}

void vm_delivery_wake(struct vm_delivery *d)
{
    __atomic_fetch_add(&d->woken, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, &d->woken, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

void vm_deliveries_wake(struct vm_incoming *in, uint32_t block, uint64_t first, uint64_t pages)
{
    if (in->deliveries == 0) {
        return;
    }
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (VM_LIKELY(vm_get(&in->delivery_waiters) == 0)) {
        return;
    }
    for (uint32_t i = 0; i < in->deliveries; i++) {
        if (vm_get_acquire(&in->delivery[i].waits_for) - key_of(block, first) < pages) {
            vm_delivery_wake(&in->delivery[i]);
        }
    }
}

void vm_delivery_wait(struct vm_delivery *d, struct vm_request q)
{
    vm_set(&d->waits_for, key_of(q.block, q.page));
    vm_add(&d->in->delivery_waiters, 1);
    for (;;) {
        uint32_t seen = vm_get_acquire(&d->woken);

        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (vm_delivery_has(d, q) || vm_delivery_is_over(d)) {
            break;
        }
        futex_wait(&d->woken, seen);
    }
    vm_add(&d->in->delivery_waiters, -1);
    vm_set(&d->waits_for, VM_NO_PAGE);
}

void vm_delivery_wait_for_end(struct vm_delivery *d)
{
    for (;;) {
        uint32_t seen = vm_get_acquire(&d->woken);

        if (vm_delivery_is_over(d)) {
            return;
        }
        futex_wait(&d->woken, seen);
    }
}
