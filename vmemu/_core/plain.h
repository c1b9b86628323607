/*
 * The accesses that most traces consist of: many behind each other of the same size, each in one
 * aligned word of a page that was touched before. There is a loop for each size and for what else
 * an access does.
 */
#ifndef VM_PLAIN_H
#define VM_PLAIN_H

#include <stdint.h>

#include "order.h"
#include "replay.h"

/*
 * Make the first accesses of a slice, up to one that is not plain or of another size: how many
 * were made, which are added to kinds (of enum vm_access_kind). host: of this vCPU, with its
 * first touches; of plain pages the address alone.
 */
uint32_t vm_replay_plain(struct vm_vcpu *v, const uint64_t *host, const struct vm_slice *s,
                         uint64_t kinds[4]);

/*
 * The same of a slice without a column of places, up to the first access that is not plain. What
 * can't be made so, since reads are checked by marks, is not: 0.
 */
uint32_t vm_replay_evenly(struct vm_vcpu *v, const uint64_t *host, const struct vm_slice *s,
                          uint64_t kinds[4]);

/* Add accesses to the number of those of their kinds. */
void vm_count_kinds(const uint8_t *what, uint32_t count, uint64_t kinds[4]);

#endif
