/*
 * The lines of lackey are
 *
 *   "I  0401ab70,3"   instruction fetch       " L 1fff000738,8"   load
 *   " S 1fff000738,8" store                   " M 0421b3c0,4"     modify (load and store at once)
 *
 * with the address in hex without 0x and the size in decimal. Valgrind's own lines start with its
 * process id between "==", "--" or "**". The program's own output may stand between them.
 */
#include "lackey.h"

#include <string.h>

enum { MAX_LINE = 4096, MAX_SIZE = 4096, MAX_HEX_DIGITS = 16, MAX_SIZE_DIGITS = 4 };
enum { LOAD, STORE, MODIFY, FETCH };

struct access {
    uint64_t address;
    uint16_t size;
    uint8_t kind;
};

/* Value + 1 of a hex digit, 0 for every other byte, so that one look-up does both. */
static const uint8_t hex_digit[256] = {
    ['0'] = 1,  ['1'] = 2,  ['2'] = 3,  ['3'] = 4,  ['4'] = 5,  ['5'] = 6,  ['6'] = 7,  ['7'] = 8,
    ['8'] = 9,  ['9'] = 10, ['a'] = 11, ['b'] = 12, ['c'] = 13, ['d'] = 14, ['e'] = 15, ['f'] = 16,
    ['A'] = 11, ['B'] = 12, ['C'] = 13, ['D'] = 14, ['E'] = 15, ['F'] = 16,
};

/*
 * None of the functions below takes an end: the caller gives them only lines that do end in a
 * newline, and each stops at it at the latest.
 */

/* Kind of the access from the first three bytes of its line, or -1. */
static int line_kind(const char *line)
{
    if (line[0] == ' ') {
        int kind = line[1] == 'L' ? LOAD : line[1] == 'S' ? STORE : line[1] == 'M' ? MODIFY : -1;
        return kind >= 0 && line[2] == ' ' ? kind : -1;
    }
    return line[0] == 'I' && line[1] == ' ' && line[2] == ' ' ? FETCH : -1;
}

static const char *parse_hex(const char *at, uint64_t *value)
{
    const char *start = at;
    uint64_t sum = 0;
    for (uint8_t digit; (digit = hex_digit[(uint8_t)*at]) != 0; at++)
        sum = sum << 4 | (uint64_t)(digit - 1);
    *value = sum;
    return at > start && at - start <= MAX_HEX_DIGITS ? at : NULL;
}

static const char *parse_size(const char *at, uint16_t *value)
{
    const char *start = at;
    uint32_t sum = 0;
    for (; *at >= '0' && *at <= '9' && at - start <= MAX_SIZE_DIGITS; at++)
        sum = sum * 10 + (uint32_t)(*at - '0');
    *value = (uint16_t)sum;
    return at > start && sum >= 1 && sum <= MAX_SIZE ? at : NULL;
}

/* The access of a line and where the next line starts, or NULL if the line is no access. */
static const char *parse_access(const char *line, struct access *access)
{
    int kind = line_kind(line);
    if (kind < 0)
        return NULL;
    access->kind = (uint8_t)kind;

    const char *at = parse_hex(line + 3, &access->address);
    if (!at || *at != ',')
        return NULL;
    at = parse_size(at + 1, &access->size);
    if (!at)
        return NULL;
    if (access->address + access->size - 1 <
        access->address) /* over the end of the address space */
        return NULL;
    if (*at == '\r')
        at++;
    return *at == '\n' ? at + 1 : NULL;
}

/* "==123==", "--123--" and "**123**" open the lines that valgrind itself writes. */
static bool is_valgrinds_own(const char *line)
{
    char mark = line[0];
    if ((mark != '=' && mark != '-' && mark != '*') || line[1] != mark)
        return false;
    const char *at = line + 2;
    while (*at >= '0' && *at <= '9')
        at++;
    return at > line + 2 && at[0] == mark && at[1] == mark;
}

static void count_unknown(struct vm_lackey *state, const char *line, size_t length)
{
    if (state->unknown++ > 0)
        return;
    if (length > sizeof state->first_unknown_text)
        length = sizeof state->first_unknown_text;
    state->first_unknown = state->lines + 1;
    state->first_unknown_length = (uint32_t)length;
    memcpy(state->first_unknown_text, line, length);
}

/* Throws away the rest of a long line; returns the bytes of it. */
static size_t skip_long_line(struct vm_lackey *state, const char *text, size_t length)
{
    const char *newline = length ? memchr(text, '\n', length) : NULL;
    if (!newline)
        return length;
    state->in_long_line = false;
    state->lines++;
    return (size_t)(newline + 1 - text);
}

size_t vm_lackey_parse(struct vm_lackey *state, const char *text, size_t length, bool keep_fetches,
                       uint64_t *addresses, uint8_t *kinds, uint16_t *sizes, size_t capacity)
{
    size_t filled = 0;
    const char *at = text;
    if (state->in_long_line)
        at += skip_long_line(state, text, length);

    size_t left = length - (size_t)(at - text);
    const char *last = left ? memrchr(at, '\n', left) : NULL;
    const char *end = last ? last + 1 : at;

    while (at < end && filled < capacity) {
        struct access access;
        const char *next = parse_access(at, &access);
        if (!next) {
            const char *newline = memchr(at, '\n', (size_t)(end - at));
            if (!is_valgrinds_own(at))
                count_unknown(state, at, (size_t)(newline - at));
            next = newline + 1;
        } else {
            state->fetches += access.kind == FETCH;
            if (access.kind != FETCH || keep_fetches) {
                addresses[filled] = access.address;
                kinds[filled] = access.kind;
                sizes[filled] = access.size;
                filled++;
            }
        }
        state->lines++;
        at = next;
    }
    state->filled = filled;

    left = length - (size_t)(at - text);
    if (at == end && left >= MAX_LINE && !state->in_long_line) {
        count_unknown(state, at, left);
        state->in_long_line = true;
        at += left;
    }
    return (size_t)(at - text);
}
