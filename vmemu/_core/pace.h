/*
 * When a vCPU makes its accesses: as fast as it can, at the times of a recording, or at a fixed
 * rate. How late it is, is measured.
 */
#ifndef VM_PACE_H
#define VM_PACE_H

#include <stdbool.h>
#include <stdint.h>

#include "order.h"

enum vm_pace_kind { VM_PACE_ASAP = 0, VM_PACE_RECORDED = 1, VM_PACE_RATE = 2 };

/*
 * The guest's clock. It counts ns of the recording, the same for all vCPUs; or, for a rate, the
 * accesses of each vCPU, from its own begin.
 */
struct vm_pace {
    uint32_t kind;
    double unit_ns; /* of CLOCK_MONOTONIC in what the clock counts; finite */
    /* Of a recording: */
    uint64_t zero;     /* the clock when it starts: the earliest time not yet replayed */
    uint64_t start_ns; /* CLOCK_MONOTONIC at its start; 0: it stands, the first vCPU starts it */
};

struct vm_vcpu;

/*
 * Times are ns of CLOCK_MONOTONIC since the clock started. In the guest's own units, those of a
 * recording that is replayed a billion times faster would soon be too large for any type.
 */
struct vm_pacer {
    struct vm_vcpu *v;
    const struct vm_pace *pace;
    uint64_t zero, start_ns;
    double now_ns;   /* when the clock was last looked at */
    double mean_ns;  /* of all lags so far */
    uint32_t credit; /* accesses that may follow without another look at the clock */
};

/* For the calling thread, which is that of the vCPU; its clock runs from now on. */
void vm_pacer_start(struct vm_pacer *p, struct vm_vcpu *v, struct vm_pace *pace);

/*
 * Wait until the slice's first access is due: how many of them are, at least 1, or 0 when v->stop
 * was set meanwhile. position: of the first one in the vCPU's share.
 */
uint32_t vm_pacer_wait(struct vm_pacer *p, const struct vm_slice *s, uint64_t position);

/* Note how late the slice's first done accesses were; delayed: the last one waited for a page. */
void vm_pacer_note(struct vm_pacer *p, const struct vm_slice *s, uint64_t position, uint32_t done,
                   bool delayed);

#endif
