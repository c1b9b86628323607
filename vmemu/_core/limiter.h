/*
 * A bandwidth limit for what goes out in the background: pre-copy and the push. Requests never come
 * here, so an urgent page never waits for a token.
 */
#ifndef VM_LIMITER_H
#define VM_LIMITER_H

#include <stdint.h>

struct vm_limiter {
    uint64_t bytes_per_second; /* 0: no limit */
    uint64_t free_at_ns;       /* when everything sent so far has had its time */
    uint64_t waits;            /* how often something had to wait */
};

/* How long to wait before the next bytes may go, in ns; 0: now. */
uint64_t vm_limiter_delay(struct vm_limiter *l, uint64_t now_ns);
/* Note that bytes are sent now. */
void vm_limiter_charge(struct vm_limiter *l, uint64_t now_ns, uint64_t bytes);

#endif
