/* What a vCPU goes through: a part of a recorded stream, or accesses that are made. */
#ifndef VM_LANE_H
#define VM_LANE_H

#include <stdbool.h>
#include <stdint.h>

#include "synthetic.h"

struct vm_lane {
    const struct vm_synthetic *synthetic; /* accesses are made, the columns are not used; or NULL */
    const void *where;                    /* uint32_t, or uint64_t when wide */
    const uint8_t *what;
    const uint64_t *times; /* ns as recorded, ascending, one an access; or NULL */
    uint64_t count;        /* of the columns */
    uint64_t loops;        /* how often the columns are gone through */
    uint64_t first_page;   /* where the dictionary of its trace begins in that of the guest */
    uint64_t origin_ns;    /* recorded time at which its trace begins; no time is earlier */
    uint64_t duration_ns;  /* from one loop's begin to the next; no time lies further behind */
    const uint16_t *sizes; /* VM_SIZES entries, bytes: of its own trace */
    bool wide;
    bool mapped; /* the columns are files that are mapped: what was used is let go of */
};

#endif
