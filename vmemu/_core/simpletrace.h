/* The chain of records in the file of QEMU's simple trace backend, of a little-endian host. */
#ifndef VM_SIMPLETRACE_H
#define VM_SIMPLETRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * A record, all numbers little-endian and unaligned:
 *
 *   byte  0  u64  event          ~0 - 1: QEMU lost events, the argument is their number
 *   byte  8  u64  time in ns
 *   byte 16  u32  length of all this, arguments included
 *   byte 20  u32  process
 *   byte 24       arguments: u64 each, a text as u32 length and bytes
 *
 * From version 4 on (typed) a u64 stands before each record: 1; or 0 before the name of an event:
 * u64 event, u32 length of the name, name.
 */
struct vm_simpletrace {
    bool typed;
    bool damaged; /* what follows the last record is none */
    uint64_t capacity, count;
    uint32_t *starts; /* where each whole record begins, its type included */
};

/*
 * Finds the whole records in bytes[0..length). Returns the bytes that they take: the caller gives
 * the rest again, with more behind it.
 */
size_t vm_simpletrace_split(struct vm_simpletrace *s, const char *bytes, size_t length);

#endif
