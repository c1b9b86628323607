/* Lines of values by column, read and written. */
#ifndef VM_TEXT_CSV_H
#define VM_TEXT_CSV_H

#include <stddef.h>
#include <stdint.h>

#include "text.h"

enum { VM_CSV_COLUMNS = 62 };

/* What a column of values means. */
enum vm_csv_role {
    VM_CSV_OTHER,
    VM_CSV_ADDRESS,     /* decimal, or hexadecimal with 0x */
    VM_CSV_ADDRESS_HEX, /* hexadecimal without 0x */
    VM_CSV_PAGE,        /* number of a 4 KiB page */
    VM_CSV_OFFSET,      /* in a block, as an address */
    VM_CSV_BLOCK,       /* name of a RAM block */
    VM_CSV_KIND,        /* a word or letter: load, store, modify, fetch */
    VM_CSV_WRITE,       /* yes or no */
    VM_CSV_SIZE,        /* bytes */
    VM_CSV_STREAM,      /* thread or vCPU */
    VM_CSV_TIME_NS,     /* times may have a fraction */
    VM_CSV_TIME_US,
    VM_CSV_TIME_MS,
    VM_CSV_TIME_S,
};

/* Say what the columns are before the first line is parsed. columns <= VM_CSV_COLUMNS. */
void vm_csv_begin(struct vm_text *t, char separator, const uint8_t *role, uint32_t columns);

/* Which columns are written; without `block` a place is an address. */
struct vm_csv_layout {
    bool stream, time, kind, size;
    const char *const *block; /* names as they shall stand in the line; NULL: addresses */
    const uint64_t *start;    /* address of each block's first byte, ascending */
    uint32_t blocks;
    uint32_t longest_block; /* bytes of the longest name */
};

/*
 * Writes `count` accesses of one stream as lines "[stream,][time,][kind,]place[,size]". Returns the
 * bytes written; `room` must be enough: vm_csv_room of each.
 */
size_t vm_csv_write(const struct vm_csv_layout *layout, uint64_t stream,
                    const struct vm_columns *from, uint64_t count, char *text);
size_t vm_csv_room(const struct vm_csv_layout *layout);

#endif
