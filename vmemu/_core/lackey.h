/* Text of valgrind's lackey (--tool=lackey --trace-mem=yes) to columns of accesses. */
#ifndef VM_LACKEY_H
#define VM_LACKEY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a parse knows between two calls; all zero before the first. */
struct vm_lackey {
    uint64_t lines;                /* lines consumed, of every kind */
    uint64_t fetches;              /* instruction fetches seen, kept or not */
    uint64_t unknown;              /* lines that are neither an access nor valgrind's own */
    uint64_t first_unknown;        /* number of the first of them, from 1; 0 = none */
    uint64_t filled;               /* entries that the last call wrote to the columns */
    uint32_t first_unknown_length; /* bytes of it in first_unknown_text */
    bool in_long_line;             /* the last call ended inside a line that is being thrown away */
    char first_unknown_text[80];   /* its beginning, as it came; not terminated */
};

/*
 * Reads whole lines from text[0..length) and appends an entry to the three columns for each data
 * access, and for each instruction fetch if keep_fetches: address in bytes, kind (0 load, 1 store,
 * 2 modify, 3 fetch), size in bytes (1 to 4096). Stops at the last newline or when `capacity`
 * entries are full. Returns the bytes consumed: the caller gives the rest again, with more text
 * behind it. A line longer than 4 KiB is consumed in parts and counts as one unknown line.
 */
size_t vm_lackey_parse(struct vm_lackey *state, const char *text, size_t length, bool keep_fetches,
                       uint64_t *addresses, uint8_t *kinds, uint16_t *sizes, size_t capacity);

#endif
