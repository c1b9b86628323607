/*
 * The accesses that most traces consist of, many at a time: all of the same size, each in one word
 * of a page that was touched before. What may differ from one to the next is looked at before, for
 * all of them at once.
 */
#ifndef VM_PLAIN_H
#define VM_PLAIN_H

#include <stdint.h>

#include "order.h"
#include "replay.h"

enum { VM_BATCH = 128 }; /* fills a fraction of a CPU's first cache with what is known of each */

/*
 * Make the first accesses of a slice, up to the first one that is not plain or VM_BATCH of them:
 * how many were made; 0 also when their sizes differ. refs: of this vCPU, with its first touches.
 */
uint32_t vm_replay_plain(struct vm_vcpu *v, const struct vm_page_ref *refs,
                         const struct vm_slice *s);

#endif
