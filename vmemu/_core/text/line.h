/* What a format's file needs to understand one line. */
#ifndef VM_TEXT_LINE_H
#define VM_TEXT_LINE_H

#include "../access.h"
#include "text.h"

enum vm_line {
    VM_LINE_UNKNOWN, /* means nothing in the format; nothing may have been put */
    VM_LINE_KNOWN,   /* accesses, or something of the format that is none */
};

/*
 * Understands the line [line, end), which is neither empty nor a comment. *end is the newline or
 * the carriage return before it, so a function that walks over digits or letters stops there at the
 * latest without looking at end.
 */
typedef enum vm_line (*vm_line_parser)(struct vm_text *t, const char *line, const char *end);

enum vm_line vm_line_lackey(struct vm_text *t, const char *line, const char *end);
enum vm_line vm_line_perf(struct vm_text *t, const char *line, const char *end);
enum vm_line vm_line_damon(struct vm_text *t, const char *line, const char *end);
enum vm_line vm_line_reap(struct vm_text *t, const char *line, const char *end);
enum vm_line vm_line_csv(struct vm_text *t, const char *line, const char *end);
enum vm_line vm_line_drview(struct vm_text *t, const char *line, const char *end);
enum vm_line vm_line_dramsim(struct vm_text *t, const char *line, const char *end);
enum vm_line vm_line_ramulator(struct vm_text *t, const char *line, const char *end);
enum vm_line vm_line_qemu_log(struct vm_text *t, const char *line, const char *end);
enum vm_line vm_line_execlog(struct vm_text *t, const char *line, const char *end);

struct vm_text_access {
    uint64_t address, time;
    uint32_t stream;
    uint16_t size;
    uint8_t kind;
};

/* An access of the format's, all but a fetch that nobody asked for. */
static inline void vm_text_put(struct vm_text *t, struct vm_text_access access)
{
    uint64_t at = t->filled;

    t->fetches += access.kind == VM_FETCH;
    if (access.kind == VM_FETCH && !t->keep_fetches) {
        return;
    }
    t->out.addresses[at] = access.address;
    t->out.times[at] = access.time;
    t->out.streams[at] = access.stream;
    t->out.sizes[at] = access.size;
    t->out.kinds[at] = access.kind;
    t->filled = at + 1;
}

/* Address of the first byte of the block of that name, which may be new; false if it can't have
 * one.
 */
bool vm_text_block(struct vm_text *t, const char *name, size_t length, uint64_t *start);

/* Whether the access has a possible size and stays within the 64-bit address space. */
static inline bool vm_text_sound(uint64_t address, uint64_t size)
{
    return size >= 1 && size <= VM_TEXT_MAX_SIZE && address + (size - 1) >= address;
}

/* Value + 1 of a hex digit, 0 for every other byte, so that one look-up does both. */
extern const uint8_t vm_hex_digit[256];

/* The numbers below give where they end, or NULL where there is none or one too large. */

static inline const char *vm_parse_hex(const char *at, uint64_t *value)
{
    const char *start = at;
    uint64_t sum = 0;

    for (uint8_t digit; (digit = vm_hex_digit[(uint8_t)*at]) != 0; at++) {
        sum = sum << 4 | (uint64_t)(digit - 1);
    }
    *value = sum;
    return at > start && at - start <= 16 ? at : NULL;
}

/* With its 0x. */
static inline const char *vm_parse_0x(const char *at, uint64_t *value)
{
    return at[0] == '0' && (at[1] == 'x' || at[1] == 'X') ? vm_parse_hex(at + 2, value) : NULL;
}

static inline const char *vm_parse_decimal(const char *at, uint64_t *value)
{
    const char *start = at;
    uint64_t sum = 0;

    for (; *at >= '0' && *at <= '9'; at++) {
        uint64_t digit = (uint64_t)(*at - '0');

        if (__builtin_mul_overflow(sum, 10, &sum) || __builtin_add_overflow(sum, digit, &sum)) {
            return NULL;
        }
    }
    *value = sum;
    return at > start ? at : NULL;
}

/* With a minus before it or not; as two's complement. */
static inline const char *vm_parse_signed(const char *at, uint64_t *value)
{
    bool negative = *at == '-';

    at = vm_parse_decimal(at + negative, value);
    *value = negative ? -*value : *value;
    return at;
}

/* Seconds with up to nine digits behind the point, as nanoseconds. */
const char *vm_parse_seconds(const char *at, uint64_t *ns);

static inline const char *vm_skip_spaces(const char *at)
{
    while (*at == ' ' || *at == '\t') {
        at++;
    }
    return at;
}

/* Behind the word if the line goes on with it, else NULL. */
const char *vm_skip_word(const char *at, const char *end, const char *word);

#endif
