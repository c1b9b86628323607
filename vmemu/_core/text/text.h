/*
 * Recordings that are lines of text, turned into columns of accesses. What all such formats share
 * is here; each has a file of its own with a function that understands one line.
 */
#ifndef VM_TEXT_H
#define VM_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The order is that of the table in text.c. */
enum vm_text_format {
    VM_TEXT_LACKEY,
    VM_TEXT_PERF,
    VM_TEXT_DAMON,
    VM_TEXT_REAP,
    VM_TEXT_CSV,
    VM_TEXT_DRVIEW,
    VM_TEXT_DRAMSIM,
    VM_TEXT_RAMULATOR,
    VM_TEXT_QEMU_LOG,
    VM_TEXT_EXECLOG,
    VM_TEXT_FORMATS,
};

enum {
    VM_TEXT_LINE_ACCESSES = 256, /* accesses of one line at most */
    VM_TEXT_MAX_SIZE = 4096,     /* bytes of an access at most */
    VM_TEXT_MAX_LINE = 4096,     /* bytes of a line, less than this */
    VM_TEXT_REASONS = 4,
    VM_TEXT_BLOCKS = 512, /* RAM blocks of a recording that names them, at most */
    VM_TEXT_BLOCK_NAME = 256,
    VM_TEXT_BLOCK_SHIFT = 44, /* block i is laid at i << this, in the order of first sight */
};

/* Where accesses are written: an entry of each column for an access. */
struct vm_columns {
    uint64_t *addresses; /* of the first byte */
    uint64_t *times;     /* ns; 0 where the format has none */
    uint32_t *streams;   /* thread or vCPU; 0 where the format has none */
    uint16_t *sizes;     /* bytes, 1 to VM_TEXT_MAX_SIZE */
    uint8_t *kinds;      /* enum vm_access_kind */
    uint64_t capacity;   /* entries; more than VM_TEXT_LINE_ACCESSES */
};

/* What a parse knows between two calls; all zero before the first but for the options. */
struct vm_text {
    bool keep_fetches;                 /* option: instruction fetches are accesses too */
    bool in_long_line;                 /* the last call ended inside a line that is thrown away */
    uint64_t lines;                    /* consumed, of every kind */
    uint64_t fetches;                  /* instruction fetches seen, kept or not */
    uint64_t unknown;                  /* lines that mean nothing in the format */
    uint64_t first_unknown;            /* number of the first of them, from 1; 0: none */
    uint64_t dropped[VM_TEXT_REASONS]; /* accesses left out on purpose, by the format's reasons */
    uint64_t filled;                   /* entries that the last call wrote */
    uint64_t memory[8];                /* what the format's own function keeps between lines */
    uint32_t first_unknown_length;     /* bytes of it in first_unknown_text */
    char first_unknown_text[80];       /* its beginning, as it came; not terminated */
    uint32_t blocks;
    char block[VM_TEXT_BLOCKS][VM_TEXT_BLOCK_NAME]; /* their names, terminated */
    struct vm_columns out;
};

/*
 * Reads whole lines from text[0..length) and writes their accesses to state->out from its start.
 * Stops at the last newline or when there is no room for another line's accesses. Returns the bytes
 * consumed: the caller gives the rest again, with more text behind it. A line of VM_TEXT_MAX_LINE
 * or more is consumed in parts and counts as one unknown line.
 */
size_t vm_text_parse(struct vm_text *state, enum vm_text_format format, const char *text,
                     size_t length);

#endif
