/* What a vCPU touches for the first time, in the order of its accesses. */
#ifndef VM_FIRST_TOUCH_H
#define VM_FIRST_TOUCH_H

#include <stdint.h>

#include "replay.h"

/*
 * List the pages of the guest's dictionary that the accesses [v->begin, v->end) touch, each once,
 * without touching memory. at: when; ns of the guest's time at the pace of a recording, else
 * accesses of this vCPU. Room for guest->pages entries each. The number listed, or -1 without
 * memory; uses v up.
 */
int64_t vm_first_touches(struct vm_vcpu *v, uint64_t *page, uint64_t *at, struct vm_error *err);

#endif
