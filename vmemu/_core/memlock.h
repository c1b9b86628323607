/* Locked memory: mlock(2) and mlockall(2). Locking brings every page in, so it must wait until no
 * page can be missing. */
#ifndef VM_MEMLOCK_H
#define VM_MEMLOCK_H

#include <stdint.h>

#include "error.h"

/*
 * Lock or unlock the pages of [address, address + length). A lock that fails half-way leaves the
 * range marked as locked: unlock it. It waits for missing pages, so the range must not be
 * registered with userfaultfd.
 */
int vm_mlock(uint64_t address, uint64_t length, struct vm_error *err);
int vm_munlock(uint64_t address, uint64_t length, struct vm_error *err);

/* All memory of the process, that which it has and that which it will map. */
int vm_mlockall(struct vm_error *err);
int vm_munlockall(struct vm_error *err);

#endif
