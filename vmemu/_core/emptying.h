/* Freeing much memory at once. */
#ifndef VM_EMPTYING_H
#define VM_EMPTYING_H

#include <stdint.h>

/*
 * Free the pages of a mapping, whose next touch finds none; for shared memory they are only taken
 * out of this mapping. What could not be freed (locked memory) stays. Not for hugetlbfs.
 */
void vm_empty(uint64_t address, uint64_t length);

#endif
