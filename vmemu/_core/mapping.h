/* Mapping memory without Python ever holding a view of it. */
#ifndef VM_MAPPING_H
#define VM_MAPPING_H

#include <stdint.h>

#include "error.h"

/*
 * Map length bytes readable and writable, shared from the start of fd, or private and anonymous
 * when fd is -1. Memory that has to be reserved is reserved now: a shortage fails here and is never
 * a SIGBUS later. alignment is a power of two; the address is a multiple of it.
 */
int vm_map(uint64_t length, int fd, uint64_t alignment, uint64_t *address, struct vm_error *err);
/*
 * Lay ordinary memory, empty and promised to nobody, over a mapping. Whoever waits for a page there
 * and is woken goes on with zeros, and takes no page of what was mapped: a tmpfs that is full, or a
 * hugepage that is withheld, would be a SIGBUS.
 */
int vm_cover(uint64_t address, uint64_t length, struct vm_error *err);
/*
 * Have whole pages of 4 KiB and more there, with zeros where nothing was. Where there is no memory
 * for one this is an error, with its address, and a touch would be a SIGBUS: on a tmpfs that is
 * full, or a hugepage that is withheld. Not for registered memory.
 */
int vm_populate_read(uint64_t address, uint64_t length, struct vm_error *err);
int vm_unmap(uint64_t address, uint64_t length, struct vm_error *err);
int vm_advise(uint64_t address, uint64_t length, int advice, struct vm_error *err);
/* Give the bytes of the file back; what is read there afterwards is zeros, or a userfault. */
int vm_punch_hole(int fd, uint64_t offset, uint64_t length, struct vm_error *err);

#endif
